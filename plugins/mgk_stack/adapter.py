"""Several adapters as one: attached in order, each acting on what those before it leave."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgk_core.contract.adapter import (
    Adapter,
    Additive,
    Factors,
    Identity,
    LowRank,
    Saves,
    Target,
    check_state,
)
from mgk_core.model.lowrank import stored_delta

OWN = "state.safetensors"
"""As the core names an adapter's state, so that a run keeps it once."""
_IDENTITIES: tuple[Identity, ...] = ("exact", "close", "none")


class Stack:
    """The members, by name, in the order of attaching. Keys of ``state_dict``: member, a slash, its key."""

    def __init__(self, name: str, members: Mapping[str, Adapter]) -> None:
        self.name, self.members = name, dict(members)
        loosest = max(_IDENTITIES.index(m.identity) for m in members.values())
        self.identity: Identity = _IDENTITIES[loosest]
        self.row_separable = all(m.row_separable for m in members.values())
        self.notes = tuple(
            f"{member}: {note}"
            for member, adapter in members.items()
            for note in getattr(adapter, "notes", ())
        )

    def on(self, name: str) -> list[Adapter]:
        """Return the members that change this weight, in order."""
        return [m for m in self.members.values() if name in m.targets()]

    def parameters(self) -> list[nn.Parameter]:
        """Return every member's parameters."""
        return [p for m in self.members.values() for p in m.parameters()]

    def targets(self) -> dict[str, Target]:
        """Return the targets of all members; one that several change appears once."""
        found: dict[str, Target] = {}
        for member in self.members.values():
            for name, target in member.targets().items():
                found.setdefault(name, target)
        return found

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return what the members, one after the other, make of the weight."""
        for member in self.on(name):
            weight = member.merged_weight(name, weight, rows)
        return weight

    def factors(self, name: str) -> Factors | None:
        """Return the factors of a weight; of several members side by side, Σ sᵢ BᵢAᵢ = [sᵢ Bᵢ] [Aᵢ]."""
        found = [_factors(member, name) for member in self.on(name)]
        known = [f for f in found if f is not None]
        if len(known) < len(found) or not known:
            return None
        return known[0] if len(known) == 1 else _side_by_side(known)

    def delta(self, name: str, rows: slice | None = None) -> Tensor | None:
        """Return the sum of the members' deltas; None where one of them does not add."""
        total: Tensor | None = None
        for member in self.on(name):
            part = _delta(member, name, rows)
            if part is None:
                return None
            total = part if total is None else total + part
        return total

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Run without any member inside the block."""
        with ExitStack() as stack:
            for member in self.members.values():
                stack.enter_context(member.disabled())
            yield

    def detach(self) -> None:
        """Take the members off, the last one first."""
        for member in reversed(self.members.values()):
            member.detach()

    def state_dict(self) -> dict[str, Tensor]:
        """Return every member's state; not copies."""
        return {
            f"{name}/{key}": tensor
            for name, member in self.members.items()
            for key, tensor in member.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state`` in place; nothing is changed where it does not fit."""
        own = self.state_dict()
        check_state(self.name, own, state)
        before = {key: tensor.detach().clone() for key, tensor in own.items()}
        try:
            self._load(state)
        except BaseException:
            self._load(before)
            raise

    def _load(self, state: Mapping[str, Tensor]) -> None:
        for name, member in self.members.items():
            prefix = f"{name}/"
            own = {
                key.removeprefix(prefix): tensor
                for key, tensor in state.items()
                if key.startswith(prefix)
            }
            member.load_state_dict(own)

    def save(self, directory: Path) -> None:
        """Write `state_dict`, and each member's own format in a folder of its name."""
        state = {k: v.cpu().clone() for k, v in self.state_dict().items()}
        save_file(state, directory / OWN)
        for name, member in self.members.items():
            if isinstance(member, Saves):
                (directory / name).mkdir()
                member.save(directory / name)

    def load(self, directory: Path) -> None:
        """Load what `save` wrote, bit for bit."""
        self.load_state_dict(load_file(directory / OWN))

    def rescale(self, weight: float) -> None:
        """Multiply every delta by ``weight``."""
        for member in self.members.values():
            member.rescale(weight)  # type: ignore[attr-defined]


def additive(adapter: Adapter, name: str) -> bool:
    """Return whether an adapter adds something to this weight that does not depend on it."""
    return (
        _factors(adapter, name) is not None
        or _delta(adapter, name, slice(0, 0)) is not None
    )


def _factors(adapter: Adapter, name: str) -> Factors | None:
    return adapter.factors(name) if isinstance(adapter, LowRank) else None


def _delta(adapter: Adapter, name: str, rows: slice | None) -> Tensor | None:
    factors = _factors(adapter, name)
    if factors is None:
        return adapter.delta(name, rows) if isinstance(adapter, Additive) else None
    target = adapter.targets()[name]
    shape = target.parameter.shape
    wide = torch.float64 if factors.a.dtype == torch.float64 else torch.float32
    stored = stored_delta(factors, transposed=target.transposed, dtype=wide)
    start, stop, _ = (rows or slice(None)).indices(shape[0])
    per_row = stored.rows // shape[0]
    out = stored.left.new_empty((stop - start) * per_row, stored.right.shape[-1])
    return stored.write_(out, start * per_row).view(stop - start, *shape[1:])


def _side_by_side(factors: list[Factors]) -> Factors:
    a = torch.cat([f.a for f in factors], dim=-2)
    b = torch.cat([f.b * f.scale for f in factors], dim=-1)
    initial = [f for f in factors if f.a0 is not None and f.b0 is not None]
    if not initial:
        return Factors(a, b, 1.0)
    a0 = torch.cat([f.a0 for f in initial if f.a0 is not None], dim=-2)
    b0 = torch.cat([f.b0 * f.scale for f in initial if f.b0 is not None], dim=-1)
    return Factors(a, b, 1.0, a0, b0)
