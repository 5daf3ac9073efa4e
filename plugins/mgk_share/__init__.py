"""Sharing a run: GGUF files, the hub, and an endpoint for trying a model."""
