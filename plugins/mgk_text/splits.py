"""Train, dev and test: the files that the user named, or fixed shares of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import frozen

from mgk_core.contract.errors import InputError
from mgk_text import contamination
from mgk_text.mixture import distinct, mixed
from mgk_text.problems import several, verb
from mgk_text.records import Record, fingerprint
from mgk_text.rows import Read, Reader
from mgk_text.specs import TextDataSpec

_SHOWN = 3  # places of rows that are named in a note


@frozen
class Splits:
    """Records of each split; rows that share a group are in one of them."""

    train: tuple[Record, ...]
    dev: tuple[Record, ...]
    test: tuple[Record, ...]
    notes: tuple[str, ...] = ()

    def others(self, split: str) -> list[Record]:
        """Return the records of the other splits, train first."""
        names = [name for name in ("train", "dev", "test") if name != split]
        return [record for name in names for record in getattr(self, name)]


def load(spec: TextDataSpec, reader: Reader, base: Sequence[Record] = ()) -> Splits:
    """Read the splits. Problems stay with the reader.

    :param base: what probes of the base ask, which training rows must not share either
    """
    read = {
        name: reader.records(getattr(spec, name), name)
        for name in ("train", "dev", "test")
        if name != "train" or not spec.stream
    }
    read.setdefault("train", Read())
    dev, test = read["dev"].records, read["test"].records
    train: Sequence[Record] = read["train"].records
    if not dev and spec.dev_share:
        train, dev = held_out(train, spec.dev_share, f"dev {spec.seed}")
    if not test and spec.test_share:
        train, test = held_out(train, spec.test_share, f"test {spec.seed}")
    notes = [*reader.notes]
    if skipped := sum(r.skipped for r in read.values()):
        notes.append(f"{several(skipped, 'bad row')} left out")
    train = _mixture(spec, read["train"], train, notes)[: spec.limit]
    for name, held in (("dev", dev), ("test", test)):
        notes += shared(train, held, name)
    train = _clean(spec, train, [*dev, *test, *base], notes)
    return Splits(tuple(train), dev, test, tuple(notes))


def _mixture(
    spec: TextDataSpec, read: Read, train: Sequence[Record], notes: list[str]
) -> list[Record]:
    """Return the training rows as the weights of their sources ask, repeated ones reported."""
    kept = {id(row) for row in train}
    parts = [[row for row in part if id(row) in kept] for part in read.by_setting]
    once = distinct(train)
    if repeated := len(train) - len(once):
        what = (
            "left out"
            if spec.deduplicate
            else "kept; set deduplicate to leave them out"
        )
        notes.append(
            f"{several(repeated, 'training row')} {verb(repeated, 'repeat')} an earlier one: {what}"
        )
        if spec.deduplicate:
            first = {id(row) for row in once}
            parts = [[row for row in part if id(row) in first] for part in parts]
    made = mixed(parts, spec.weights, interleave=spec.interleave, seed=spec.seed)
    if spec.weights:
        sizes = " + ".join(
            f"{len(part):,} × {w:g}"
            for part, w in zip(parts, spec.weights, strict=True)
        )
        notes.append(f"mixture: {sizes} = {several(len(made), 'training row')}")
    return made


def _clean(
    spec: TextDataSpec,
    train: Sequence[Record],
    held: Sequence[Record],
    notes: list[str],
) -> Sequence[Record]:
    """Treat training rows that share text with held-out rows as the configuration asks."""
    found = contamination.overlaps(train, held, spec.contamination_words)
    if not found:
        return train
    if spec.contamination == "refuse":
        raise contamination.refusal(found)
    dropped = spec.contamination == "drop"
    # Rows that are equal as a whole have a note of their own.
    partly = [one for one in found if fingerprint(one.row) != fingerprint(one.held)]
    if listed := found if dropped else partly:
        notes.append(contamination.note(listed, dropped=dropped))
    gone = {id(one.row) for one in found} if dropped else set[int]()
    return [row for row in train if id(row) not in gone]


def held_out(
    records: Sequence[Record], share: float, salt: str
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Part records into (kept, held out): a pure function of each group's name and the salt."""
    kept: list[Record] = []
    held: list[Record] = []
    for record in records:
        digest = hashlib.blake2b(
            f"{salt}\0{record.key}".encode(), digest_size=8
        ).digest()
        (held if int.from_bytes(digest) < share * 2**64 else kept).append(record)
    return tuple(kept), tuple(held)


def shared(train: Sequence[Record], held: Sequence[Record], name: str) -> list[str]:
    """Return a note if rows of a held-out split are trained on too: what it measures is memory."""
    trained = {fingerprint(record): record for record in train}
    pairs = [(trained[key], r) for r in held if (key := fingerprint(r)) in trained]
    if not pairs:
        return []
    places = ", ".join(f"{r.place} = {t.place}" for t, r in pairs[:_SHOWN])
    more = " …" if len(pairs) > _SHOWN else ""
    count = f"{len(pairs):,} of {len(held):,} {name} rows are also in train"
    return [f"{count}; their scores show memory, not learning: {places}{more}"]


def check_named(spec: TextDataSpec) -> None:
    """Refuse data without a training source."""
    if not spec.train:
        raise InputError(
            f"data {spec.type!r}: train: expected a file, a folder, package:PACKAGE/PATH"
            " or hub:OWNER/NAME"
        )
