"""A phase that teaches warnings of common drugs, and a pipeline that has it."""
