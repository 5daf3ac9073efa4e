"""Attaching several adapters: all of them or none, and only such as merge exactly together."""

from __future__ import annotations

from torch import nn

from mgk_core.contract.adapter import Adapter, aliases_of
from mgk_core.contract.errors import ConfigError, InputError
from mgk_core.contract.peers import peers
from mgk_stack.adapter import Stack, additive
from mgk_stack.spec import StackSpec


def attach_stack(model: nn.Module, spec: StackSpec, name: str) -> Stack:
    """Attach the adapters of ``spec`` in order. Nothing is changed where one fails.

    :raises InputError: an adapter's own, or two adapters that cannot be merged together exactly
    """
    others = peers()
    members: dict[str, Adapter] = {}
    try:
        for member, table in spec.adapters.items():
            own = others.spec("adapter", table)
            members[member] = others.attach_adapter(model, own, f"{name}-{member}")
            _check_overlap(members, member)
        _check_ties(model, members)
        return Stack(name, members)
    except (ConfigError, InputError) as error:
        _detach(members)
        raise InputError(f"adapter.adapters.{member}: {error}") from error
    except BaseException:
        _detach(members)
        raise


def _detach(members: dict[str, Adapter]) -> None:
    for adapter in reversed(members.values()):
        adapter.detach()


def _check_overlap(members: dict[str, Adapter], newest: str) -> None:
    new = members[newest]
    for member, earlier in members.items():
        if member == newest:
            return
        for weight in earlier.targets().keys() & new.targets().keys():
            if not (additive(earlier, weight) and additive(new, weight)):
                raise InputError(
                    f"{weight} is a target of {member!r} too, and one of the two is more than an added delta;"
                    " leave it out of one of them (exclude)"
                )


def _check_ties(model: nn.Module, members: dict[str, Adapter]) -> None:
    """Refuse a member that has untied a weight which another one trains under all its names."""
    for member, adapter in members.items():
        for weight, target in adapter.targets().items():
            names = {*aliases_of(model, target.parameter)} - {weight}
            if names != set(target.aliases):
                raise InputError(
                    f"{member!r} trains {weight} together with {', '.join(target.aliases)}, and another adapter"
                    " gives it a copy of its own (tied = 'untie'); let only one of them target it"
                )
