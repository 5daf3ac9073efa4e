"""Wrong options for dictionary entries: other entries of the same specialty, drawn once for all."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from attrs import define, field, frozen

from mgk_text.records import Entry
from mgk_text.templates import DictionaryTemplate

_MANY = 1000  # names that are shuffled for one entry; of more, so many are sampled first


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

    def names(self, entry: Entry, specialty: str | None, without: Iterable[str]) -> list[str]:
        """Return names that are wrong for an entry, sorted: none of an entry that shares a term."""
        alike = [*self._alike.get(("ko", entry.ko), ()), *self._alike.get(("en", entry.en), ())]
        excluded = Counter[str]()
        for other in {id(e): e for e in alike}.values():
            if specialty is None or other.specialty == specialty:
                excluded[self.template.answer(other)] += 1
        counts = self._names.get(specialty, Counter())
        gone = {name for name, count in excluded.items() if counts[name] <= count}
        gone.update(without, [""])
        return [name for name in self._sorted.get(specialty, ()) if name not in gone]


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
                if len(wrong) < self.count:
                    names = pool.names(entry, specialty, (right, *wrong))
                    wrong += _chosen(names, self.count - len(wrong), rng)
        place = rng.randrange(len(wrong) + 1)
        return Drawn((*wrong[:place], right, *wrong[place:]), place)


def _chosen(names: list[str], count: int, rng: random.Random) -> list[str]:
    if len(names) > _MANY:
        names = rng.sample(names, _MANY)
    rng.shuffle(names)
    return names[:count]


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
