"""Tasks of EleutherAI's lm-evaluation-harness as probes of a run."""
