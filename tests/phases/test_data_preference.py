"""The shipped preference pairs: whole, different, in normal form, and short enough to train on."""

import json
import unicodedata
from importlib.resources import files

import pytest

FOLDER = files("mgk_phases") / "data" / "preference"


def rows(split):
    """Return the pairs of a split."""
    text = (FOLDER / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_pair_is_whole(split):
    """A prompt and two different answers, in NFC, without blanks around them, none of them long."""
    for row in rows(split):
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["chosen"] != row["rejected"]
        for text in row.values():
            assert text == unicodedata.normalize("NFC", text).strip()
            assert 0 < len(text) < 200


def test_there_are_enough_and_none_is_there_twice():
    """At least 200 pairs, in both languages, no prompt or answer in two of them."""
    pairs = rows("train") + rows("test")
    assert len(pairs) >= 200
    for field in ("prompt", "rejected"):
        texts = [pair[field].casefold() for pair in pairs]
        assert len(set(texts)) == len(texts)
    korean = [any("가" <= c <= "힣" for c in pair["prompt"]) for pair in pairs]
    assert sum(korean) >= 80
    assert len(pairs) - sum(korean) >= 80


def test_the_card_has_the_counts():
    """README.md counts what the files have, and has where the pairs are from."""
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for split in ("train", "test"):
        assert f"| `{split}.jsonl` | {len(rows(split))} |" in card
    assert "Authored for mgk" in card
