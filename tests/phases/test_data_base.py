"""Texts that no phase trains on: for the base's probes, and for its statistics."""

import itertools
import unicodedata

import pytest

NAMES = ("probe_ko", "probe_en", "calibration_ko", "calibration_en")


def hangul(text):
    letters = [c for c in text if c.isalpha()]
    return sum("가" <= c <= "힣" for c in letters) / len(letters)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_sixty_clean_texts_of_one_language(base_rows, name):
    """Each file has sixty texts or more, NFC, in its language, with unique ids and no two alike."""
    rows = base_rows(name)
    assert len(rows) >= 60
    assert len({r["id"] for r in rows}) == len({r["text"] for r in rows}) == len(rows)
    for row in rows:
        assert row["text"] == unicodedata.normalize("NFC", row["text"]).strip()
        assert (
            hangul(row["text"]) > 0.9
            if name.endswith("ko")
            else hangul(row["text"]) == 0.0
        )


def test_probe_and_calibration_share_nothing(base_rows, shipped):
    """No probe text has a near twin in the calibration texts, or in what the phases train on."""

    def grams(text, size=8):
        return {text[i : i + size] for i in range(len(text) - size + 1)}

    trained = [grams(r["text"]) for r in shipped("text")]
    for language in ("ko", "en"):
        calibration = [grams(r["text"]) for r in base_rows(f"calibration_{language}")]
        for row in base_rows(f"probe_{language}"):
            own = grams(row["text"])
            assert (
                max(
                    len(own & other) / len(own)
                    for other in itertools.chain(calibration, trained)
                )
                < 0.15
            ), row["id"]
