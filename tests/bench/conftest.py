"""What the tests of mgk_bench share."""

from __future__ import annotations

import gzip
import json
import random

import pytest

WORDS = ["red", "blue", "green", "apple", "pear", "stone", "river", "cloud"]
COLOURS = ("red", "blue", "green")


def _rows(task, count, seed):
    draw = random.Random(seed)
    for _ in range(count):
        one, other = draw.sample(WORDS, 2)
        if task == "colour":
            answer = {
                "output": "yes" if one in COLOURS else "no",
                "labels": ["yes", "no"],
            }
            yield {"instruction": "Is it a colour?", "input": one, **answer}
        else:
            text = f"{one} {other}"
            answer = text.upper() if task == "upper" else f"{other} {one}"
            yield {"instruction": f"{task}:", "input": text, "output": answer}


@pytest.fixture
def suite_folder(tmp_path):
    """A suite of three small tasks; one file is compressed, two orders take two tasks each."""
    folder = tmp_path / "small"
    for task in ("upper", "swap", "colour"):
        (folder / task).mkdir(parents=True)
        for split, count in (("train", 12), ("test", 4)):
            rows = (json.dumps(row) for row in _rows(task, count, split))
            text = "\n".join(rows) + "\n"
            path = folder / task / f"{split}.jsonl"
            if task == "swap":
                path.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text.encode()))
            else:
                path.write_text(text)
    orders = {"there": ["upper", "swap"], "back": ["swap", "upper"], "one": ["colour"]}
    (folder / "orders.json").write_text(json.dumps(orders))
    return folder
