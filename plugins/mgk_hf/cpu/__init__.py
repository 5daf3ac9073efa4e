"""Fast paths for CPUs only: a vocabulary head screened in int8, and activations kept in bf16. Nothing here runs on a GPU."""
