"""Tied weights: seen before an adapter is attached, refused with a way out, or untied on request.

A delta on one end of a tie would be live at that end alone and, once merged, at both: the merged
model would not be the trained one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from attrs import frozen
from torch import nn

from mgk_core.contract.adapter import base_name
from mgk_core.contract.errors import InputError
from mgk_lora.kinds import Candidate


@frozen(eq=False)
class Untied:
    """One tie that was cut: where, and the Parameter that stood there."""

    module: nn.Module
    attribute: str
    shared: nn.Parameter
    config: object | None
    config_said: bool

    def retie(self) -> None:
        """Tie again, unless a merge has made the two differ."""
        own = getattr(self.module, self.attribute)
        if torch.equal(own, self.shared):
            setattr(self.module, self.attribute, self.shared)
            if self.config is not None:
                self.config.tie_word_embeddings = self.config_said  # type: ignore[attr-defined]


def tied_names(at: Mapping[int, Sequence[str]], candidate: Candidate) -> tuple[str, ...]:
    """Return the other base names of a candidate's weight, and names that share its memory; at: `by_memory`."""
    return tuple(n for n in at.get(_memory(candidate.parameter), ()) if n != candidate.weight)


def by_memory(model: nn.Module) -> dict[int, list[str]]:
    """Return the base names over each piece of memory: of one Parameter, or of several tied without sharing it."""
    found: dict[int, list[str]] = {}
    for raw, parameter in model.named_parameters(remove_duplicate=False):
        if (name := base_name(raw)) is not None:
            found.setdefault(_memory(parameter), []).append(name)
    return found


def check_ties(model: nn.Module, chosen: Iterable[Candidate], *, untie: bool) -> list[Candidate]:
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


def untie(model: nn.Module, tied: Sequence[Candidate]) -> list[Untied]:
    """Give each candidate a copy of its weight; the model's config says so too."""
    config = getattr(model, "config", None)
    if not hasattr(config, "tie_word_embeddings"):
        config = None
    done: list[Untied] = []
    for candidate in tied:
        owner_path, _, attribute = candidate.attribute.rpartition(".")
        owner = candidate.module.get_submodule(owner_path)
        shared = candidate.parameter
        said = bool(getattr(config, "tie_word_embeddings", False))
        own = nn.Parameter(shared.detach().clone(), requires_grad=shared.requires_grad)
        done.append(Untied(owner, attribute, shared, config, said))
        setattr(owner, attribute, own)
        if config is not None:
            config.tie_word_embeddings = False
    return done


def _memory(parameter: nn.Parameter) -> int:
    """What tells one piece of memory from another; where there is none (empty, meta), the Parameter itself."""
    if parameter.numel() == 0 or parameter.device.type == "meta":
        return -id(parameter)
    return parameter.untyped_storage().data_ptr()
