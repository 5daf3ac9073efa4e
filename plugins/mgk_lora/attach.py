"""Putting LoRA on a model: choose, check everything, build, and only then touch the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mgk_core.contract.adapter import (
    Identity,
    ModelState,
    Target,
    aliases_of,
    base_name,
    retie,
)
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import effective_weights, parts_of, put, take
from mgk_core.model.ties import check_ties, untie
from mgk_lora.adapter import AnyPart, LoraAdapter
from mgk_lora.dora import DoraConvPart, DoraEmbeddingPart, DoraLinearPart
from mgk_lora.init import start
from mgk_lora.kinds import Candidate
from mgk_lora.notes import cut_ranks, largest_rank, left_out
from mgk_lora.pair import Pair
from mgk_lora.parts import ConvPart, EmbeddingPart, LinearPart, LoraPart, WeightPart
from mgk_lora.spec import RESIDUAL, DoraSpec, LoraSpec
from mgk_lora.targets import candidates, choose, first_match

_PARTS: dict[str, tuple[type[LoraPart], type[LoraPart]]] = {
    "linear": (LinearPart, DoraLinearPart),
    "embedding": (EmbeddingPart, DoraEmbeddingPart),
    "conv": (ConvPart, DoraConvPart),
}


def attach(
    model: nn.Module, spec: LoraSpec, name: str, *, any_rank: bool = False
) -> LoraAdapter:
    """Attach LoRA to the weights that ``spec`` names. Nothing is changed where it fails.

    A rank above a weight's smaller side is cut to it; the delta's scale stays alpha / the rank asked for.

    :param any_rank: keep ranks above a weight's smaller side (adapters of other tools)
    :raises InputError: unknown target, tied weight, no bias that could hold the trained one
    """
    everything = candidates(model)
    chosen = choose(model, spec.targets, spec.exclude, everything)
    tied = check_ties(model, chosen, untie=spec.tied == "untie")
    asked = {
        c.weight: int(first_match(dict(spec.rank_pattern), c, spec.rank))
        for c in chosen
    }
    _check(spec, chosen, asked)
    ranks = asked if any_rank else _no_larger(chosen, asked)
    pairs = {c.weight: _pair(spec, c, asked[c.weight], ranks[c.weight]) for c in chosen}
    notes = (
        *cut_ranks(asked, ranks),
        *left_out(model, spec.targets, everything, chosen),
    )
    untied = untie(model, tied)
    try:
        adapter = _place(model, spec, name, chosen=chosen, pairs=pairs, untied=untied)
        adapter.notes = notes
        return adapter
    except BaseException:
        for module in {id(c.module): c.module for c in chosen}.values():
            take(module, name)
        if untied is not None:
            retie(untied)
        raise


def scale_of(spec: LoraSpec, candidate: Candidate, rank: int) -> float:
    """Return alpha / rank, or alpha / √rank (Kalajdzievski 2023, arXiv 2312.03732)."""
    alpha = first_match(dict(spec.alpha_pattern), candidate, spec.alpha)
    return alpha / (rank**0.5 if spec.rslora else rank)


def _no_larger(chosen: Sequence[Candidate], asked: dict[str, int]) -> dict[str, int]:
    """Return the ranks, each at most its weight's smaller side."""
    return {c.weight: min(asked[c.weight], largest_rank(c.layout)) for c in chosen}


def _check(spec: LoraSpec, chosen: Sequence[Candidate], ranks: dict[str, int]) -> None:
    for candidate in chosen:
        if (rank := ranks[candidate.weight]) < 1:
            raise InputError(
                f"target {candidate.name}: expected a rank >= 1, got {rank}"
            )
        if spec.bias and candidate.bias is None:
            raise InputError(
                f"target {candidate.name}: bias = true, but {type(candidate.module).__name__} has no bias that could"
                " take the trained one up; exclude it, or set bias = false"
            )
        if getattr(candidate.module, "max_norm", None) is not None:
            raise InputError(
                f"target {candidate.name}: an embedding with max_norm rewrites its weight; exclude it"
            )
    if spec.bias and isinstance(spec, DoraSpec):
        raise InputError(
            "bias = true has no meaning with type = 'dora'; use type = 'lora', or bias = false"
        )


def _pair(spec: LoraSpec, candidate: Candidate, asked: int, rank: int) -> Pair:
    scale = scale_of(spec, candidate, asked)
    pair = Pair(
        candidate.layout, start(candidate, spec, rank, scale), scale, spec.dropout,
        bias=spec.bias, dtype=_dtype(spec, candidate.parameter),
    )  # fmt: skip
    return pair.to(candidate.parameter.device)


def _dtype(spec: LoraSpec, parameter: nn.Parameter) -> torch.dtype:
    if spec.dtype == "auto":
        return torch.float64 if parameter.dtype == torch.float64 else torch.float32
    dtype = getattr(torch, spec.dtype)
    assert isinstance(dtype, torch.dtype)  # noqa: S101 - the spec's validator knows the names
    return dtype


def _place(
    model: nn.Module,
    spec: LoraSpec,
    name: str,
    *,
    chosen: Sequence[Candidate],
    pairs: dict[str, Pair],
    untied: ModelState | None,
) -> LoraAdapter:
    placed: list[tuple[nn.Module, AnyPart]] = []
    by_module: dict[int, list[Candidate]] = {}
    for candidate in chosen:
        by_module.setdefault(id(candidate.module), []).append(candidate)
    for group in by_module.values():
        module = group[0].module
        part = _part(spec, group, pairs)
        part.train(module.training)
        if isinstance(spec, DoraSpec):
            for attribute, pair in part.pairs().items():
                pair.start_magnitude(_standing_weight(module, attribute))
        put(module, name, part)
        placed.append((module, part))
    homes = {
        c.weight: (pairs[c.weight], _target(model, c, c.attribute, c.weight))
        for c in chosen
    }
    biases = {}
    if spec.bias:
        for c in chosen:
            assert c.bias is not None  # noqa: S101 - checked before
            full = f"{c.module_name}.{c.bias}" if c.module_name else c.bias
            biases[full] = (pairs[c.weight], _target(model, c, c.bias, full))
    return LoraAdapter(
        name, spec, chosen, placed=placed, pairs=homes, biases=biases, untied=untied,
        identity=_identity(model, spec), module_names=_module_names(model),
    )  # fmt: skip


def _module_names(model: nn.Module) -> tuple[str, ...]:
    names = (base_name(n) for n, _ in model.named_modules() if n)
    return tuple(n for n in names if n is not None)


def _identity(model: nn.Module, spec: LoraSpec) -> Identity:
    """Exact, but where B is not zero, and for torch's fused attention.

    The bare base may run ``nn.MultiheadAttention`` through a fused kernel in evaluation mode; with
    an adapter inside it cannot, and the two kernels round differently.
    """
    fused = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
    return (
        "close"
        if spec.init in RESIDUAL or any(isinstance(m, fused) for m in model.modules())
        else "exact"
    )


def _part(
    spec: LoraSpec, group: Sequence[Candidate], pairs: dict[str, Pair]
) -> AnyPart:
    first = group[0]
    if first.kind == "weight":
        own = {c.attribute: pairs[c.weight] for c in group}
        return WeightPart(
            own, {c.attribute: c.bias for c in group if c.bias is not None}
        )
    plain, dora = _PARTS[first.kind]
    return (dora if isinstance(spec, DoraSpec) else plain)(pairs[first.weight])


def _standing_weight(module: nn.Module, attribute: str) -> torch.Tensor:
    """Return the weight as adapters attached before leave it: what DoRA's norms start from."""
    with torch.no_grad():
        changed = effective_weights(module, [p for p in parts_of(module) if p.enabled])
    return changed.get(attribute, module.get_parameter(attribute))


def _target(
    model: nn.Module, candidate: Candidate, attribute: str, full: str
) -> Target:
    path, _, last = attribute.rpartition(".")
    owner = candidate.module.get_submodule(path)
    aliases = tuple(
        n
        for n in aliases_of(model, candidate.module.get_parameter(attribute))
        if n != full
    )
    return Target(
        full,
        owner,
        last,
        candidate.layout.transposed and attribute == candidate.attribute,
        aliases,
    )
