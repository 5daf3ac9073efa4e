"""The nine steps of a phase, the runner around them, resume and rebuild."""
