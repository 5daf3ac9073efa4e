"""``mgk push``: a run's model or adapter to the Hugging Face hub."""
