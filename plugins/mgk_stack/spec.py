"""The keys of the adapter types ``stack`` and ``loaded``."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mgk_core.contract.specs import Spec, option


@frozen(kw_only=True)
class StackSpec(Spec):
    """stack: several adapters, attached in order, active together and merged together."""

    adapters: dict[str, dict[str, Any]] = option(
        {}, help="name = an adapter's table: { type, and the keys of that type }"
    )

    def __attrs_post_init__(self) -> None:
        if not self.adapters:
            raise ValueError("adapters: expected at least one")
        for name, table in self.adapters.items():
            if not table.get("type"):
                raise ValueError(f"adapters.{name}: expected a table with a type")
            if "/" in name or not name:
                raise ValueError(f"adapters: expected names without '/', got {name!r}")


@frozen(kw_only=True)
class LoadedSpec(Spec):
    """loaded: an adapter that was trained before, on the same kind of base."""

    path: str = option(
        "", help="RUN/phases/N-NAME of an earlier run, or a directory that PEFT wrote"
    )
    weight: float = option(1.0, help="what its delta is multiplied by")
    train: bool = option(
        False, help="train it further; otherwise it is active, frozen, and merged"
    )

    def __attrs_post_init__(self) -> None:
        if not self.path:
            raise ValueError("path: expected a directory")
