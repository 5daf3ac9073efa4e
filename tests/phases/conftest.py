"""The shipped data, as rows."""

import json
from importlib.resources import files

import pytest

SPLITS = ("train", "dev", "test")


def read(name):
    """Return the rows of one shipped file."""
    path = files("mgk_phases") / "data" / "korean_medical" / name
    return [
        json.loads(line)
        for line in path.read_text(encoding="utf-8").split("\n")
        if line
    ]


@pytest.fixture(scope="session")
def shipped():
    """Return ``shipped(folder, split)`` → rows; split ``all``: those of every split."""

    def rows(folder, split="all"):
        return [
            row
            for s in (SPLITS if split == "all" else (split,))
            for row in read(f"{folder}/{s}.jsonl")
        ]

    return rows


@pytest.fixture(scope="session")
def base_rows():
    """Return ``base_rows(name)`` → rows of a file of texts that no phase trains on."""
    return lambda name: read(f"base/{name}.jsonl")
