"""The two tasks of the reference network: one that can be learnt, and pure noise.

``teacher``: inputs ``x = m + spread · z``, targets ``y = T x + noise_std · e`` with z and e standard
normal. T (entries teacher_std · N(0, 1)) and the mean m belong to the phase's seed;
``m = shift · (√overlap · c + √(1 − overlap) · d)`` with unit vectors c, common to a family of tasks,
and d, the task's own. The common part stands for what all texts of one language share, and is why
a later phase disturbs an earlier one. No predictor has a lower expected loss than the noise alone,
``outputs · noise_std²``: that is the floor. In the reference's few steps the network learns mainly
how T answers to the mean; what T does around the mean, ``spread² · ‖T‖²`` of loss, stays mostly.

``noise``: inputs and targets are unrelated standard normals, as in the reference program. The best
prediction is zero, so the floor is ``outputs``, and no training brings the probe below it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.bundle import PhaseData, Probe
from mgk_core.contract.errors import InputError
from mgk_textmodel.bundle import ReferenceBundle
from mgk_textmodel.pairs import Pairs
from mgk_textmodel.specs import NoiseSpec, PairsSpec, TeacherSpec

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
"""(number of examples, generator) → inputs (n, in), targets (n, out), on the CPU."""

_SPLITS = ("train", "dev", "test", "verify")
_VERIFY = 64  # examples on which merged is compared with live


@define(eq=False)
class PairsTrainSet:
    """Training examples on the device. both: (n, in + out), so that one look-up fetches a batch.

    Counts are kept by size: nearly every batch has the same one.
    """

    both: Tensor
    width: int
    digest: str
    _counts: dict[int, Tensor] = field(factory=dict)

    def __len__(self) -> int:
        return len(self.both)

    def batch(self, rows: Sequence[int]) -> Pairs:
        """Collate rows, in the order given."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(self.both.device)
        inputs, targets = self.both.index_select(0, index).tensor_split(
            (self.width,), 1
        )
        count = self._counts.get(len(rows))
        if count is None:
            count = self._counts[len(rows)] = torch.full(
                (), float(len(rows)), device=self.both.device
            )
        return Pairs(inputs, targets, count)


def teacher_draw(spec: TeacherSpec, inside: int, outside: int) -> Draw:
    """Return the sampler of a teacher's examples."""
    own = torch.Generator().manual_seed(2 * spec.seed + 1)
    shared = torch.Generator().manual_seed(2 * spec.family)
    direction = math.sqrt(spec.overlap) * _unit(inside, shared) + math.sqrt(
        1 - spec.overlap
    ) * _unit(inside, own)
    mean = spec.shift * direction
    teacher = spec.teacher_std * torch.randn(outside, inside, generator=own)

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = mean + spec.spread * torch.randn(n, inside, generator=generator)
        return inputs, inputs @ teacher.T + spec.noise_std * torch.randn(
            n, outside, generator=generator
        )

    return draw


def noise_draw(inside: int, outside: int) -> Draw:
    """Return the sampler of unrelated inputs and targets."""

    def draw(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(n, inside, generator=generator), torch.randn(
            n, outside, generator=generator
        )

    return draw


def load(spec: PairsSpec, bundle: object) -> PhaseData:
    """Draw a phase's data: training set, probes (dev and test), dev and verification batches."""
    if not isinstance(bundle, ReferenceBundle):
        raise InputError(
            f"data type {spec.type!r} needs the base type 'reference'; this base is another model"
        )
    inside, outside = bundle.network.widths[0], bundle.network.widths[-1]
    if isinstance(spec, TeacherSpec):
        draw, floor = teacher_draw(spec, inside, outside), outside * spec.noise_std**2
    else:
        draw, floor = noise_draw(inside, outside), float(outside)
    sizes = {
        "train": spec.size,
        "dev": spec.items,
        "test": spec.items,
        "verify": _VERIFY,
    }
    parts = {name: draw(sizes[name], _generator(spec, name)) for name in _SPLITS}
    pairs = {
        name: Pairs.of(x.to(bundle.device), y.to(bundle.device))
        for name, (x, y) in parts.items()
    }
    return PhaseData(
        train=PairsTrainSet(
            torch.cat(parts["train"], 1).to(bundle.device),
            inside,
            _digest(*parts["train"]),
        ),
        probes=tuple(
            _probe(spec, split, pairs[split], _digest(*parts[split]), floor)
            for split in ("dev", "test")
        ),
        dev=(pairs["dev"],),
        verify=(pairs["verify"],),
    )


def _probe(
    spec: PairsSpec, split: str, pairs: Pairs, digest: str, floor: float
) -> Probe:
    rows = zip(torch.split(pairs.inputs, 1), torch.split(pairs.targets, 1), strict=True)
    return Probe(
        name=spec.probe_name,
        phase="",
        metric=spec.metric,
        items=tuple(Pairs.of(x, y) for x, y in rows),
        higher_is_better=False,
        floor=floor if spec.metric == "squared_error" else None,
        split=split,
        digest=digest,
    )


def _generator(spec: PairsSpec, split: str) -> torch.Generator:
    """One stream of random numbers per data set and split, so that no split sees another's."""
    kind = isinstance(spec, NoiseSpec)
    return torch.Generator().manual_seed(
        (spec.seed * 2 + kind) * 1009 + 1 + _SPLITS.index(split)
    )


def _unit(width: int, generator: torch.Generator) -> Tensor:
    vector = torch.randn(width, generator=generator)
    length: Tensor = torch.linalg.vector_norm(vector)
    return vector / length


def _digest(*tensors: Tensor) -> str:
    """sha256 over the tensors' bytes."""
    content = hashlib.sha256()
    for tensor in tensors:
        content.update(tensor.contiguous().numpy().tobytes())
    return content.hexdigest()
