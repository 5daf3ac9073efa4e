"""Wrong options for dictionary entries: other entries of the same specialty, drawn once for all."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from mgk_text.records import Entry
from mgk_text.templates import DictionaryTemplate


def options_for(
    entry: Entry,
    same: Sequence[Entry],
    other: Sequence[Entry],
    template: DictionaryTemplate,
    *,
    count: int,
    seed: int,
) -> tuple[tuple[str, ...], int]:
    """Return (options, index of the right one) for an entry: a pure function of entry and seed.

    :param same: entries of the probe's own split, from which wrong options come first: what is
        learnt elsewhere would make an option likelier than the right one for a reason of its own
    :param other: where those of the entry's specialty do not suffice, then of any
    """
    right = template.answer(entry)
    rng = random.Random(_number(f"{seed}\0{entry.ko}\0{entry.en}"))  # noqa: S311 - not for secrets
    wrong: list[str] = []
    for pool, everywhere in ((same, False), (other, False), (same, True), (other, True)):
        if len(wrong) < count:
            fits = [
                e
                for e in pool
                if e.ko != entry.ko
                and e.en != entry.en
                and (everywhere or e.specialty == entry.specialty)
            ]
            names = sorted({template.answer(e) for e in fits} - {right, *wrong, ""})
            rng.shuffle(names)
            wrong += names[: count - len(wrong)]
    place = rng.randrange(len(wrong) + 1)
    return (*wrong[:place], right, *wrong[place:]), place


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
