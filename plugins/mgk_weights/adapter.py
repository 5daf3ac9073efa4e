"""The adapter: the deltas of a base's own weights, and what they do to each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from attrs import frozen
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgk_core.contract.adapter import (
    Identity,
    ModelState,
    Target,
    load_in_place,
    retie,
)
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import Part, switched_off, take
from mgk_weights import peft_format

OWN = "state.safetensors"
"""As the core names an adapter's state, so that a run keeps it once."""


@frozen(eq=False)
class Delta:
    """What is trained of one weight: D as a whole, or its rows ``ids`` (ascending, on the CPU)."""

    values: nn.Parameter
    target: Target
    ids: Tensor | None = None
    rows_before: Tensor | None = None

    @property
    def before(self) -> Tensor:
        """The base's rows ``ids`` as they were at attach, in D's dtype; of a whole weight there is no copy."""
        assert self.rows_before is not None  # noqa: S101 - only asked of rows
        return self.rows_before.to(self.values)

    def of_rows(self, start: int, stop: int) -> Tensor:
        """Return rows ``start … stop`` of D, dense."""
        values = self.values.detach()
        if self.ids is None:
            return values[start:stop]
        first, last = torch.searchsorted(self.ids, torch.tensor([start, stop])).tolist()
        block = values.new_zeros((stop - start, *values.shape[1:]))
        block[(self.ids[first:last] - start).to(values.device)] = values[first:last]
        return block


class WeightsAdapter:
    """Additive deltas on a base's own weights; made by `mgk_weights.attach`.

    Keys of ``state_dict``: the weight's name in the base, and of chosen rows the name, a slash and
    ``rows`` or ``ids``.
    """

    row_separable = True
    identity: Identity

    def __init__(
        self,
        name: str,
        deltas: Sequence[Delta],
        placed: Sequence[tuple[nn.Module, Part]],
        untied: ModelState | None,
        identity: Identity,
    ) -> None:
        self.name, self.identity = name, identity
        self.deltas = {d.target.weight: d for d in deltas}
        self._placed, self._untied = list(placed), untied
        self.notes: tuple[str, ...] = ()

    def parameters(self) -> list[nn.Parameter]:
        """Return the deltas in the order of the targets."""
        return [d.values for d in self.deltas.values()]

    def targets(self) -> dict[str, Target]:
        """Return weight name in the base → where it is."""
        return {name: d.target for name, d in self.deltas.items()}

    def delta(self, name: str, rows: slice | None = None) -> Tensor:
        """Return D, or a block ``rows`` of it, in fp32 (float64 on a float64 base)."""
        found = self.deltas[name]
        count = found.target.parameter.shape[0]
        start, stop, _ = (rows or slice(None)).indices(count)
        return found.of_rows(start, stop)

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return W + D, or a block ``rows`` of it."""
        return weight + self.delta(name, rows).to(weight.dtype)

    @torch.no_grad()
    def rescale(self, weight: float) -> None:
        """Multiply every delta by ``weight``."""
        for found in self.deltas.values():
            found.values.mul_(weight)

    def disabled(self) -> AbstractContextManager[None]:
        """Run without this adapter inside the block."""
        return switched_off([part for _, part in self._placed])

    def detach(self) -> None:
        """Take every part off; weights untied at attach are tied again unless they differ by now."""
        for module, _ in self._placed:
            take(module, self.name)
        if self._untied is not None:
            retie(self._untied)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all deltas, and the ids of chosen rows; not copies."""
        state: dict[str, Tensor] = {}
        for name, found in self.deltas.items():
            if found.ids is None:
                state[name] = found.values.detach()
            else:
                state[f"{name}/rows"] = found.values.detach()
                state[f"{name}/ids"] = found.ids
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state`` in place; an `InputError` names missing, unknown or misshapen keys."""
        own = self.state_dict()
        for key, ids in own.items():
            other = state.get(key)
            if not key.endswith("/ids") or other is None or other.shape != ids.shape:
                continue
            if not torch.equal(other.to(ids), ids):
                raise InputError(
                    f"adapter {self.name!r}: {key}: the state is of other rows than this adapter trains"
                )
        load_in_place(self.name, own, state)


class RowsAdapter(WeightsAdapter):
    """Chosen rows of a token table, which PEFT has a type for too."""

    @property
    def unties(self) -> bool:
        """Whether attaching gave a weight a copy of its own."""
        return self._untied is not None

    def save(self, directory: Path) -> None:
        """Write `state_dict`, and beside it PEFT's format where PEFT has the type."""
        state = {k: v.cpu().contiguous() for k, v in self.state_dict().items()}
        save_file(state, directory / OWN)
        if peft_format.fits(self):
            peft_format.save_peft(self, directory)

    def load(self, directory: Path) -> None:
        """Load what `save` wrote, bit for bit."""
        self.load_state_dict(load_file(directory / OWN))
