"""The phase: its place, that its data is sound, and that it is used only where it is named.

Needs the installed distribution: `pip install ./examples/mgk-drug-safety`.
"""

import json
import unicodedata
from importlib.resources import files

import pytest

import mgk

SPLITS = ("train", "dev", "test")


def rows(split):
    """Return the entries of a split."""
    text = (
        files("mgk_drug_safety")
        .joinpath(f"data/{split}.jsonl")
        .read_text(encoding="utf-8")
    )
    return [json.loads(line) for line in text.splitlines()]


def phases(config):
    """Return the names of the phases of a resolved configuration file."""
    return [p.name for p in mgk.resolve(config=config).phases]


def test_it_acts_only_where_it_is_named(tmp_path):
    """The shipped pipeline is what it was; a file that uses the phase has it after the dictionary."""
    plain, with_it = tmp_path / "plain.toml", tmp_path / "with.toml"
    plain.write_text('extends = "korean-medical"\n')
    with_it.write_text(
        'extends = "korean-medical"\n[phases.drug_safety]\nuse = "drug-safety"\n'
    )
    before = phases(plain)
    assert "drug_safety" not in before
    place = before.index("dictionary") + 1
    assert phases(with_it) == [*before[:place], "drug_safety", *before[place:]]


def test_its_own_pipeline_has_it():
    """`korean-medical-safe` is the shipped pipeline with the phase in its place."""
    names = [p.name for p in mgk.pipeline("korean-medical-safe").phases]
    assert names.index("drug_safety") == names.index("dictionary") + 1


@pytest.mark.parametrize("split", SPLITS)
def test_every_entry_is_whole_and_normalised(split):
    """Each has a class, two names and a warning, in NFC."""
    for row in rows(split):
        for key in ("id", "class", "ko", "en", "definition"):
            assert row[key] == unicodedata.normalize("NFC", row[key]).strip() != ""


def test_what_is_asked_is_not_what_was_taught():
    """No drug and no warning is in two splits; each class is in all three, so that it can be learnt."""
    for key in ("ko", "en", "definition"):
        found = [row[key] for split in SPLITS for row in rows(split)]
        assert len(set(found)) == len(found)
    classes = [{row["class"] for row in rows(split)} for split in SPLITS]
    assert classes[0] == classes[1] == classes[2]
    assert [len(rows(split)) for split in SPLITS] == [36, 18, 18]
