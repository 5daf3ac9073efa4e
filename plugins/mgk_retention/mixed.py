"""The data type ``mixed``: what several phases learn from, as one phase's data (joint training)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from attrs import define, field

from mgk_core.contract.bundle import Batch, Bundle, PhaseData, TrainSet, require_unpacks
from mgk_core.contract.peers import peers
from mgk_core.contract.sampling import Order
from mgk_retention.specs import MixedSpec


@define(eq=False)
class MixedRows:
    """Training rows of which each is a whole batch of one part; part after part, to be shuffled by the loop."""

    bundle: Bundle = field(repr=False)
    parts: Mapping[str, tuple[TrainSet, int, int]]
    digest: str = field(init=False)
    _places: list[tuple[TrainSet, list[int]]] = field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self._places = []
        for train, size, batches in self.parts.values():
            order = Order(len(train), size, 0)
            self._places += [(train, order.rows(number)) for number in range(batches)]
        said = {
            name: (train.digest, size, batches)
            for name, (train, size, batches) in self.parts.items()
        }
        self.digest = hashlib.blake2b(
            json.dumps(said).encode(), digest_size=32
        ).hexdigest()

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the one batch asked for; several are taken apart and packed together."""
        batches = [
            train.batch(inner) for train, inner in (self._places[row] for row in rows)
        ]
        if len(batches) == 1:
            return batches[0]
        bundle = require_unpacks(self.bundle, "mixed")
        return bundle.pack(
            [example for batch in batches for example in bundle.unpack(batch)]
        )


def load(spec: MixedSpec, bundle: Bundle) -> PhaseData:
    """Load every part through its own plugin, one that takes part in this run; probes, dev and calibration are those of all parts."""
    others = peers()
    found = {
        name: others.load_data(others.spec("data", part["data"]), bundle)
        for name, part in spec.parts.items()
    }
    parts = {
        n: (d.train, spec.parts[n]["batch_size"], spec.parts[n]["batches"])
        for n, d in found.items()
    }
    return PhaseData(
        train=MixedRows(bundle, parts),
        probes=tuple(p for d in found.values() for p in d.probes),
        dev=tuple(b for d in found.values() for b in d.dev),
        verify=tuple(b for d in found.values() for b in d.verify[:1]),
        calibration=tuple(b for d in found.values() for b in d.calibration),
        notes=tuple(f"{name}: {note}" for name, d in found.items() for note in d.notes),
    )
