"""``mgk bench``: methods against forgetting, side by side on small tasks that ship."""
