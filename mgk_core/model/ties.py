"""Tied weights: seen before an adapter is attached, refused with a way out, or untied on request.

A delta on one end of a tie would be live at that end alone and, once merged, at both: the merged
model would not be the trained one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import nn

from mgk_core.contract.adapter import ModelState, Untied, base_name, state_of
from mgk_core.contract.errors import InputError


class Chosen(Protocol):
    """A weight that an adapter has chosen.

    name: what patterns match. weight: its name in the base. attribute: relative to ``module``.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - see the class
    @property
    def weight(self) -> str: ...  # noqa: D102
    @property
    def module(self) -> nn.Module: ...  # noqa: D102
    @property
    def attribute(self) -> str: ...  # noqa: D102
    @property
    def parameter(self) -> nn.Parameter: ...  # noqa: D102


C = TypeVar("C", bound=Chosen)


def tied_names(at: Mapping[int, Sequence[str]], candidate: Chosen) -> tuple[str, ...]:
    """Return the other base names of a candidate's weight, and names that share its memory; at: `by_memory`."""
    return tuple(
        n for n in at.get(_memory(candidate.parameter), ()) if n != candidate.weight
    )


def by_memory(model: nn.Module) -> dict[int, list[str]]:
    """Return the base names over each piece of memory: of one Parameter, or of several tied without sharing it."""
    found: dict[int, list[str]] = {}
    for raw, parameter in model.named_parameters(remove_duplicate=False):
        if (name := base_name(raw)) is not None:
            found.setdefault(_memory(parameter), []).append(name)
    return found


def check_ties(model: nn.Module, chosen: Iterable[C], *, untie: bool) -> list[C]:
    """Return the candidates that have to be untied; raise where that was not asked for.

    Usable when a run is planned: nothing is changed.

    :raises InputError: a target is tied and ``untie`` is False, or both ends of a tie are targets
    """
    at = by_memory(model)
    tied = [(c, names) for c in chosen if (names := tied_names(at, c))]
    for candidate, names in tied:
        if not untie:
            raise InputError(
                f"target {candidate.name}: its weight is tied to {', '.join(names)}, so a delta merged into it would"
                f" act there too; leave it out (exclude = [{candidate.name!r}]), or give it a weight of its own"
                ' (tied = "untie")'
            )
    return [candidate for candidate, _ in tied]


def untie(model: nn.Module, tied: Sequence[Chosen]) -> ModelState | None:
    """Give each candidate a copy of its weight, and update the model's configuration to match.

    :return: the model's state where anything was untied: `retie` undoes it
    """
    configs = tuple(_tying(model))
    state = state_of(model)
    for candidate in tied:
        path, _, attribute = candidate.attribute.rpartition(".")
        owner = candidate.module.get_submodule(path)
        shared = candidate.parameter
        own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
        setattr(owner, attribute, own)
        state.untied.append(Untied(owner, attribute, own, shared, configs))
    if not tied:
        return None
    for config in configs:
        config.tie_word_embeddings = False
    return state


def _tying(model: nn.Module) -> Iterator[Any]:
    """Yield the configurations that declare input and output embeddings tied."""
    config: Any = getattr(model, "config", None)
    get = getattr(config, "get_text_config", None)
    parts = [config] if get is None else [config, get()]
    for part in {id(part): part for part in parts}.values():
        if getattr(part, "tie_word_embeddings", False):
            yield part


def _memory(parameter: nn.Parameter) -> int:
    """The identity of a piece of memory; where there is none (empty, meta), the Parameter itself."""
    if parameter.numel() == 0 or parameter.device.type == "meta":
        return -id(parameter)
    return parameter.untyped_storage().data_ptr()


__all__ = ["Chosen", "by_memory", "check_ties", "tied_names", "untie"]
