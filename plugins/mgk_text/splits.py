"""Train, dev and test: the files that the user named, or fixed shares of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import frozen

from mgk_core.contract.errors import InputError
from mgk_text.records import Record, fingerprint
from mgk_text.rows import Reader
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


def load(spec: TextDataSpec, reader: Reader) -> Splits:
    """Read the splits. Problems stay with the reader; `InputError` where nothing is named."""
    read = {name: reader.records(getattr(spec, name), name) for name in ("train", "dev", "test")}
    train, dev, test = (read[name].records for name in ("train", "dev", "test"))
    if not dev and spec.dev_share:
        train, dev = held_out(train, spec.dev_share, f"dev {spec.seed}")
    if not test and spec.test_share:
        train, test = held_out(train, spec.test_share, f"test {spec.seed}")
    skipped = sum(r.skipped for r in read.values())
    notes = [*reader.notes]
    if skipped:
        notes.append(f"{skipped:,} bad rows left out")
    train = train[: spec.limit]
    for name, held in (("dev", dev), ("test", test)):
        notes += shared(train, held, name)
    return Splits(train, dev, test, tuple(notes))


def held_out(
    records: Sequence[Record], share: float, salt: str
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Part records into (kept, held out): a pure function of each group's name and the salt."""
    kept: list[Record] = []
    held: list[Record] = []
    for record in records:
        digest = hashlib.blake2b(f"{salt}\0{record.key}".encode(), digest_size=8).digest()
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
