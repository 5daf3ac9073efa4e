"""Rows that the rest of a pipeline holds out: what its other phases and its own probes ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mgk_core.contract.errors import MgkError
from mgk_core.contract.specs import Spec
from mgk_text.records import Record
from mgk_text.rows import Reader, settled
from mgk_text.specs import PlainTextSpec, TextDataSpec, TextProbeSpec
from mgk_text.splits import held_out


def held_elsewhere(others: Sequence[Spec]) -> list[Record]:
    """Return the held-out rows of other specs; what cannot be read is reported where it is loaded."""
    found = list[Record]()
    for spec in others:
        try:
            found += _held(spec)
        except MgkError:
            continue
    return found


def _held(spec: Spec) -> Iterator[Record]:
    if isinstance(spec, TextProbeSpec):
        reader = Reader(PlainTextSpec(type="text", train=spec.source))
        yield from reader.foreign(spec.source, "text").records
    if not isinstance(spec, TextDataSpec):
        return
    reader = Reader(spec)
    spec = reader.spec = settled(spec, reader)
    for name in ("dev", "test"):
        share = float(getattr(spec, f"{name}_share"))
        if getattr(spec, name):
            yield from reader.records(getattr(spec, name), name).records
        elif share:
            rows = reader.records(spec.train, "train").records
            yield from held_out(rows, share, f"{name} {spec.seed}")[1]
    for source in spec.base_probes.values():
        yield from reader.foreign(source, "text").records
    for source in spec.base_questions.values():
        yield from reader.foreign(source, "mcq", spec.base_layout).records
