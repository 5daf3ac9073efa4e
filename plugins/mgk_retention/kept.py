"""What statistics files hold: names of tensors, and how moments are written and read.

retention/inputs/<weight>/matrix             fp32 (in, in): the whole moment
retention/inputs/<weight>/factor, tail       bf16 (in, k) and fp32 (in,) or (1,): a sketch
retention/inputs/<weight>/same               UTF-8 of another weight that has the same inputs
retention/outputs/<weight>/…                 the same of the gradients at the outputs
retention/fisher/<weight>                    fp32 (out, in)
retention/factors/<weight>                   fp32 (rank, in): A of the merged adapter
retention/replay/<field>                     examples, see mgk_retention.examples
retention/deltas/<weight>/a, b               fp32 (rank, in), (out, rank): what the phase merged
retention/origin/<weight>                    fp32 (out, in): the weight before the first phase
retention/opcm                               float64 (2,): λ and the norm of the task vector
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.context import Remembered
from mgk_retention.moments import Dense, Moment, Sketch, sketched, total

INPUTS, OUTPUTS, FISHER, FACTORS, REPLAY, DELTAS, ORIGIN = (
    f"retention/{part}/"
    for part in (
        "inputs",
        "outputs",
        "fisher",
        "factors",
        "replay",
        "deltas",
        "origin",
    )
)
OPCM = "retention/opcm"


def packed(part: str, weight: str, moment: Moment) -> dict[str, Tensor]:
    """Return a moment as tensors for a statistics file. An even tail takes one number."""
    if isinstance(moment, Sketch):
        even = moment.tail.numel() > 0 and bool((moment.tail == moment.tail[0]).all())
        tail = moment.tail[:1] if even else moment.tail
        factor = moment.factor.to(torch.bfloat16)
        return {
            f"{part}{weight}/factor": factor.cpu(),
            f"{part}{weight}/tail": tail.float().cpu(),
        }
    return {f"{part}{weight}/matrix": moment.dense().float().cpu()}


def alias(part: str, weight: str, other: str) -> dict[str, Tensor]:
    """Return the entry that means: the same as ``other``."""
    return {
        f"{part}{weight}/same": torch.tensor(list(other.encode()), dtype=torch.uint8)
    }


def unpacked(
    kept: Mapping[str, Tensor], part: str, weight: str, device: torch.device
) -> Moment | None:
    """Return one moment of a statistics file in fp32; None where it has none for this weight."""
    same = kept.get(f"{part}{weight}/same")
    key = part + (weight if same is None else bytes(same.tolist()).decode())
    if (matrix := kept.get(f"{key}/matrix")) is not None:
        return Dense(matrix.to(device))
    factor, tail = kept.get(f"{key}/factor"), kept.get(f"{key}/tail")
    if factor is None or tail is None:
        return None
    return Sketch(
        factor.to(device).float(), tail.to(device).expand(factor.shape[0]).clone()
    )


@define(eq=False)
class Past:
    """The statistics of the base and of all earlier phases; files are read once."""

    history: Sequence[Remembered]
    device: torch.device
    _read: list[tuple[str, dict[str, Tensor]]] | None = field(default=None, init=False)

    @property
    def files(self) -> list[tuple[str, dict[str, Tensor]]]:
        """(phase, tensors) in order."""
        if self._read is None:
            self._read = [(r.phase, r.read()) for r in self.history]
        return self._read

    def moments(self, part: str, weight: str) -> list[Moment]:
        """Return what each phase left of one weight's inputs or outputs."""
        found = [unpacked(kept, part, weight, self.device) for _, kept in self.files]
        return [m for m in found if m is not None]

    def total(self, part: str, weight: str, k: int, tail: str) -> Moment | None:
        """Return their sum with at most k columns (0: no limit); None where no phase left any."""
        found = self.moments(part, weight)
        if not found:
            return None
        whole = total(found, k or None, tail)
        return (
            sketched(whole.matrix, min(k, whole.width), tail)
            if k and isinstance(whole, Dense)
            else whole
        )

    def tensors(self, part: str, weight: str) -> list[Tensor]:
        """Return each phase's tensor of a part that keeps one per weight."""
        return [
            kept[part + weight].to(self.device)
            for _, kept in self.files
            if part + weight in kept
        ]

    def group(self, part: str) -> list[tuple[str, dict[str, Tensor]]]:
        """Return (phase, field → tensor) for a part that keeps several fields a phase."""
        found = [
            (
                phase,
                {
                    k.removeprefix(part): v
                    for k, v in kept.items()
                    if k.startswith(part)
                },
            )
            for phase, kept in self.files
        ]
        return [(phase, fields) for phase, fields in found if fields]
