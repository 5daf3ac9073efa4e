"""``mgk bench``: methods against forgetting, compared on the same loop, base and tasks."""
