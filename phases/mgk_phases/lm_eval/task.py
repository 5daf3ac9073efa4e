"""The data of the task file beside this one, as lm-evaluation-harness asks for it."""
# ruff: noqa: INP001 - the harness loads this file by its path

from __future__ import annotations

from pathlib import Path
from typing import Any

TEST = Path(__file__).parents[1] / "data" / "korean_medical" / "mcq" / "test.jsonl"


def load(**_: Any) -> dict[str, Any]:
    """Return the test split; ``datasets`` comes with the harness."""
    from datasets import Dataset

    return {"test": Dataset.from_json(str(TEST))}
