"""Putting deltas on a model: choose, check everything, build, and only then touch the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Identity, Target, aliases_of, retie
from mgk_core.contract.errors import InputError
from mgk_core.model.forwards import type_named
from mgk_core.model.inject import Part, put, take
from mgk_core.model.ties import by_memory, check_ties, tied_names, untie
from mgk_weights.adapter import Delta, RowsAdapter, WeightsAdapter
from mgk_weights.choose import Chosen, choose
from mgk_weights.parts import FullPart, rows_part, wide
from mgk_weights.spec import FullSpec, RowsSpec
from mgk_weights.tokens import chosen_ids, tables


@frozen(eq=False)
class _Weight:
    """One weight that is trained, under all names that are chosen; the first one is its own."""

    places: tuple[Chosen, ...]

    @property
    def first(self) -> Chosen:
        return self.places[0]


def attach_full(model: nn.Module, spec: FullSpec, name: str) -> WeightsAdapter:
    """Train all weights of the modules that ``spec`` names. Nothing is changed where it fails.

    A weight that is tied is trained as one where all its names are among the targets.

    :raises InputError: unknown target, a tie with a module that is not among them, a packed weight
    """
    chosen = choose(model, spec.targets, spec.exclude)
    return _attach(model, name, chosen, None, untie_others=spec.tied == "untie")


def attach_rows(model: nn.Module, spec: RowsSpec, name: str) -> WeightsAdapter:
    """Train the rows that ``spec`` names of a model's token table. Nothing is changed where it fails.

    :raises InputError: no row or an unknown one, a target that is not a table, a tie as above
    """
    chosen = tables(model, spec)
    count = min(c.parameter.shape[0] for c in chosen)
    ids = chosen_ids(model, spec, count)
    adapter = _attach(model, name, chosen, ids, untie_others=spec.tied == "untie")
    adapter.notes = (f"{len(ids):,} of {count:,} rows of the token table are trained",)
    return adapter


def _attach(
    model: nn.Module,
    name: str,
    chosen: Sequence[Chosen],
    ids: Tensor | None,
    *,
    untie_others: bool,
) -> WeightsAdapter:
    weights, half_tied = _by_weight(model, chosen)
    check_ties(model, half_tied, untie=untie_others)
    untied = untie(model, half_tied)
    deltas: dict[str, Delta] = {}
    placed: list[tuple[nn.Module, Part]] = []
    try:
        for weight in weights:
            deltas[weight.first.weight] = _delta(model, weight.first, ids)
        for module, part in _parts(weights, deltas):
            part.train(module.training)
            put(module, name, part)
            placed.append((module, part))
    except BaseException:
        for module, _ in placed:
            take(module, name)
        if untied is not None:
            retie(untied)
        raise
    cls = WeightsAdapter if ids is None else RowsAdapter
    return cls(name, list(deltas.values()), placed, untied, _identity(model))


def _by_weight(
    model: nn.Module, chosen: Sequence[Chosen]
) -> tuple[list[_Weight], list[Chosen]]:
    """Return the weights, names of one together, and those of which another name is not chosen."""
    at, names = by_memory(model), {c.weight for c in chosen}
    groups: dict[frozenset[str], list[Chosen]] = {}
    half_tied: list[Chosen] = []
    for c in chosen:
        tied = {c.weight, *tied_names(at, c)}
        if not tied <= names:
            half_tied.append(c)
            tied = {c.weight}
        groups.setdefault(frozenset(tied), []).append(c)
    for places in groups.values():
        if any(c.parameter is not places[0].parameter for c in places):
            others = ", ".join(c.weight for c in places)
            raise InputError(
                f"targets {others}: different weights that share memory cannot be trained; exclude them"
            )
    return [_Weight(tuple(places)) for places in groups.values()], half_tied


def _delta(model: nn.Module, chosen: Chosen, ids: Tensor | None) -> Delta:
    parameter = chosen.parameter
    shape = parameter.shape if ids is None else (len(ids), *parameter.shape[1:])
    values = nn.Parameter(
        torch.zeros(shape, dtype=wide(parameter.dtype), device=parameter.device)
    )
    before = None if ids is None else parameter.detach()[ids.to(parameter.device)]
    own = None if ids is None else ids.clone()  # a file's tensors share no memory
    return Delta(values, _target(model, chosen), own, before)


def _target(model: nn.Module, chosen: Chosen) -> Target:
    path, _, attribute = chosen.attribute.rpartition(".")
    owner = chosen.module.get_submodule(path)
    names = aliases_of(model, chosen.parameter)
    aliases = tuple(n for n in names if n != chosen.weight)
    transposed = type_named(owner, "Conv1D") and attribute == "weight"
    return Target(chosen.weight, owner, attribute, transposed, aliases)


def _parts(
    weights: Sequence[_Weight], deltas: Mapping[str, Delta]
) -> list[tuple[nn.Module, Part]]:
    """Return one part for each module that reads a trained weight; tied ones share the delta."""
    of_module: dict[int, tuple[nn.Module, dict[str, Delta]]] = {}
    for weight in weights:
        delta = deltas[weight.first.weight]
        for place in weight.places:
            _, own = of_module.setdefault(id(place.module), (place.module, {}))
            own[place.attribute] = delta
    return [(module, _part(module, own)) for module, own in of_module.values()]


def _part(module: nn.Module, own: Mapping[str, Delta]) -> Part:
    only = next(iter(own.values()))
    if only.ids is None:
        return FullPart({attribute: d.values for attribute, d in own.items()})
    ids = only.ids.to(only.values.device)
    part = rows_part(module, only.values, ids)
    if part is None:
        raise InputError(
            f"target {only.target.weight}: {type(module).__name__} is not a table of rows; choose embeddings or linear modules"
        )
    return part


def _identity(model: nn.Module) -> Identity:
    """Exact, but for torch's fused attention, which cannot run with an adapter inside."""
    fused = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return "close" if any(isinstance(m, fused) for m in model.modules()) else "exact"
