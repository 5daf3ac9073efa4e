"""Wrong options for dictionary entries: other entries of the same specialty, drawn once for all."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from mgk_text.records import Entry
from mgk_text.templates import DictionaryTemplate

_MANY = 1000  # names that are shuffled as a whole; of more, only a sample is touched


@frozen
class Drawn:
    """Options of one entry. right: index of the right one."""

    options: tuple[str, ...]
    right: int


@define
class Pool:
    """Entries that wrong options come from, indexed so that one draw does not read all of them."""

    template: DictionaryTemplate
    entries: Sequence[Entry] = field(repr=False)
    _names: dict[str | None, Counter[str]] = field(factory=dict, repr=False)
    _sorted: dict[str | None, list[str]] = field(factory=dict, repr=False)
    _alike: dict[tuple[str, str], list[Entry]] = field(factory=dict, repr=False)

    @classmethod
    def of(cls, template: DictionaryTemplate, entries: Sequence[Entry]) -> Pool:
        """Count the names of each specialty (None: of all), and index entries by both terms."""
        names: dict[str | None, Counter[str]] = defaultdict(Counter)
        alike: dict[tuple[str, str], list[Entry]] = defaultdict(list)
        for entry in entries:
            name = template.answer(entry)
            names[entry.specialty][name] += 1
            names[None][name] += 1
            alike["ko", entry.ko].append(entry)
            alike["en", entry.en].append(entry)
        ordered = {specialty: sorted(found) for specialty, found in names.items()}
        return cls(template, entries, dict(names), ordered, dict(alike))

    def draw(
        self,
        entry: Entry,
        specialty: str | None,
        without: Iterable[str],
        count: int,
        rng: random.Random,
    ) -> list[str]:
        """Return at most ``count`` names that are wrong for an entry: none that shares a term."""
        names = self._sorted.get(specialty, [])
        gone = {*self._alike_names(entry, specialty), *without, ""}
        if len(names) > _MANY:
            # Whatever is excluded, so large a sample has enough names, if there are enough.
            names = rng.sample(names, min(len(names), count + len(gone)))
            return [name for name in names if name not in gone][:count]
        fitting = [name for name in names if name not in gone]
        rng.shuffle(fitting)
        return fitting[:count]

    def _alike_names(self, entry: Entry, specialty: str | None) -> set[str]:
        """Return the names that only entries with one of the entry's terms have."""
        alike = [
            *self._alike.get(("ko", entry.ko), ()),
            *self._alike.get(("en", entry.en), ()),
        ]
        excluded = Counter[str]()
        for other in {id(e): e for e in alike}.values():
            if specialty is None or other.specialty == specialty:
                excluded[self.template.answer(other)] += 1
        counts = self._names.get(specialty, Counter())
        return {name for name, count in excluded.items() if counts[name] <= count}


@frozen
class Distractors:
    """Draws options for entries: a pure function of entry and seed.

    same: entries of the probe's own split, from which wrong options come first; what is learnt
    elsewhere would make an option likelier than the right one for a reason of its own. other:
    entries of other splits, where those of the entry's specialty do not suffice; then any.
    """

    same: Pool
    other: Pool
    count: int
    seed: int

    @classmethod
    def of(
        cls,
        template: DictionaryTemplate,
        same: Sequence[Entry],
        other: Sequence[Entry],
        count: int,
        seed: int,
    ) -> Distractors:
        """Index both pools once for all draws."""
        return cls(Pool.of(template, same), Pool.of(template, other), count, seed)

    def draw(self, entry: Entry) -> Drawn:
        """Return the options of one entry."""
        right = self.same.template.answer(entry)
        rng = random.Random(_number(f"{self.seed}\0{entry.ko}\0{entry.en}"))  # noqa: S311 - not for secrets
        wrong: list[str] = []
        for specialty in (entry.specialty, None):
            for pool in (self.same, self.other):
                missing = self.count - len(wrong)
                if missing:
                    wrong += pool.draw(entry, specialty, (right, *wrong), missing, rng)
        place = rng.randrange(len(wrong) + 1)
        return Drawn((*wrong[:place], right, *wrong[place:]), place)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
