"""SGD, AdamW, schedules, clipping, and the step."""
