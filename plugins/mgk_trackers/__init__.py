"""Trackers: a run's scalars, retention matrix and report in TensorBoard, W&B, trackio or MLflow."""
