"""Conformance tests of data readers, over a small language model or a bundle of the author's."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from mgk_core.contract.bundle import Bundle, PhaseData
from mgk_core.contract.errors import InputError
from mgk_core.testing.laws import (
    Law,
    LawResult,
    NotApplicable,
    broken,
    hold_all,
    law,
    require,
)
from mgk_core.testing.small_run import SmallBundle, same_weights, weights_of

Load = Callable[[Bundle, Mapping[str, Any]], PhaseData]
"""(bundle, options that replace those of the spec) → the phase's data."""


@frozen(eq=False)
class Reader:
    """A reader under test. bad: directory → options that read a file with a bad row."""

    load: Load
    bundle: Callable[[], Bundle] = SmallBundle
    bad: Callable[[Path], Mapping[str, Any]] | None = None

    def read(self) -> tuple[Bundle, PhaseData]:
        """Return a fresh bundle and the data read for it."""
        bundle = self.bundle()
        return bundle, self.load(bundle, {})


def _loss(bundle: Bundle, data: PhaseData, rows: Sequence[int]) -> tuple[float, float]:
    total, count = bundle.loss(data.train.batch(rows))
    return float(total), float(count)


@law("reading twice gives the same data")
def deterministic(reader: Reader) -> None:
    """The same digests, the same number of examples, the same probes, the same first batch."""
    found = [reader.read() for _ in range(2)]
    (one_bundle, one), (two_bundle, two) = found
    require(one.train.digest == two.train.digest, "the training set's digest differs")
    require(
        one.train.digest, "the training set has no digest, so a resume cannot check it"
    )
    require(
        len(one.train) == len(two.train),
        f"{len(one.train)} examples, then {len(two.train)}",
    )
    kept = [[(p.name, p.digest, len(p.items)) for p in d.probes] for d in (one, two)]
    require(kept[0] == kept[1], f"probes {kept[0]}, then {kept[1]}")
    rows = range(min(4, len(one.train)))
    first, second = _loss(one_bundle, one, rows), _loss(two_bundle, two, rows)
    require(first == second, f"the first batch has loss {first}, then {second}")


@law("a batch is a function of its rows")
def resumes(reader: Reader) -> None:
    """Any rows give the same batch at any time, so a resumed run sees what it would have seen."""
    bundle, data = reader.read()
    last = len(data.train) - 1
    require(last >= 0, "the training set is empty")
    rows = sorted({0, last // 2, last})
    first = _loss(bundle, data, rows)
    for other in range(last + 1):
        data.train.batch([other])
    require(
        _loss(bundle, data, rows) == first, "the same rows give another batch later"
    )


@law("batches can be learned from")
def learnable(reader: Reader) -> None:
    """Every example has something to learn and a finite loss; the model stays as it is."""
    bundle, data = reader.read()
    before = weights_of(bundle)
    for row in range(min(64, len(data.train))):
        total, count = _loss(bundle, data, [row])
        require(count > 0, f"row {row} has nothing to learn")
        require(math.isfinite(total), f"row {row} has loss {total}")
    require(same_weights(before, bundle), "reading changed a weight")


@law("probes are named and held out")
def probes(reader: Reader) -> None:
    """Names are unique within a split; items are there; no item is also a training example."""
    _, data = reader.read()
    if not data.probes:
        raise NotApplicable("it has no probe")
    named = [(p.name, p.split) for p in data.probes]
    require(
        len(set(named)) == len(named), f"two probes of one split share a name: {named}"
    )
    for probe in data.probes:
        require(len(probe.items) > 0, f"probe {probe.name!r} has no items")
    train = [repr(data.train.batch([i])) for i in range(min(256, len(data.train)))]
    for probe in data.probes:
        leaked = [item for item in probe.items[:256] if repr([item]) in train]
        require(
            not leaked, f"probe {probe.name!r}: {len(leaked)} items are trained on too"
        )


@law("a bad row is an error that names it")
def bad_rows(reader: Reader) -> None:
    """A file with a bad row raises `InputError` (or `DataError`) with the file's name."""
    if reader.bad is None:
        raise NotApplicable(
            "no bad file is given: MGK_CHECK['bad:TYPE'] = function of a directory"
        )
    with tempfile.TemporaryDirectory() as folder:
        options = reader.bad(Path(folder))
        names = [p.name for p in Path(folder).iterdir()]
        try:
            reader.load(reader.bundle(), options)
        except InputError as error:
            said = str(error)
            require(
                any(n in said for n in names),
                f"the error names none of {names}: {said}",
            )
            return
    broken("a file with a bad row was read without an error")


LAWS: tuple[Law[Reader], ...] = (deterministic, resumes, learnable, probes, bad_rows)


def check_reader(
    load: Load,
    named: str = "reader",
    *,
    bundle: Callable[[], Bundle] = SmallBundle,
    bad: Callable[[Path], Mapping[str, Any]] | None = None,
) -> list[LawResult]:
    """Run every test on a data reader.

    :param load: (bundle, options that replace some of the spec's) → the data
    :param bundle: a fresh model each time, always the same
    :param bad: writes a file with a bad row into a directory; returns the options that read it
    """
    return hold_all(LAWS, Reader(load, bundle, bad), named)
