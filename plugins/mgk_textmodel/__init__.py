"""The small reference network and its learnable tasks."""
