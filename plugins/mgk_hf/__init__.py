"""Hugging Face causal language models as bases: load, pack, learn from labels only, score, save."""
