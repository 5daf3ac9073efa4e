"""Train, dev and test: the files that the user named, or fixed shares of one file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from attrs import frozen

from mgk_core.contract.errors import InputError
from mgk_text.records import Record
from mgk_text.rows import Reader
from mgk_text.specs import TextDataSpec


@frozen
class Splits:
    """Records of each split; rows that share a group stand in one of them."""

    train: tuple[Record, ...]
    dev: tuple[Record, ...]
    test: tuple[Record, ...]
    notes: tuple[str, ...] = ()


def load(spec: TextDataSpec, reader: Reader) -> Splits:
    """Read the splits. Problems stay with the reader; `InputError` where nothing is named."""
    if not spec.train:
        raise InputError(
            f"data {spec.type!r}: train: expected a file, package:PACKAGE/PATH or hub:OWNER/NAME"
        )
    read = {name: reader.records(getattr(spec, name)) for name in ("train", "dev", "test")}
    train, dev, test = (read[name].records for name in ("train", "dev", "test"))
    if not dev and spec.dev_share:
        train, dev = held_out(train, spec.dev_share, f"dev {spec.seed}")
    if not test and spec.test_share:
        train, test = held_out(train, spec.test_share, f"test {spec.seed}")
    skipped = sum(r.skipped for r in read.values())
    notes = (f"{skipped} bad rows left out",) if skipped else ()
    return Splits(train[: spec.limit], dev, test, notes)


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
