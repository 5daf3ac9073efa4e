"""Writing a model directory of transformers as one GGUF file."""
