r"""Which weights an adapter goes on: candidates of a model, and patterns that choose among them.

A pattern is a glob on a name (``*q_proj``), a name or its last parts (``q_proj``,
``self_attn.q_proj``), a regular expression that matches a whole name (``re:.*layers\.[0-3]\..*``),
or ``all-linear``: every linear map but the output head.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

from torch import nn

from mgk_core.adapter import SLOT, base_name
from mgk_core.errors import InputError, nearest
from mgk_lora.kinds import Candidate, Layout, module_kind, parameter_layout

ALL_LINEAR = "all-linear"


def candidates(model: nn.Module) -> list[Candidate]:
    """Return every weight that can be adapted, in the model's order; a module used twice counts once."""
    found: list[Candidate] = []
    inside: set[int] = set()  # children that their parent uses without calling them
    head = _head(model)
    for raw, module in model.named_modules():
        name = base_name(raw) if raw else ""
        if name is None or id(module) in inside:
            continue
        if isinstance(module, nn.MultiheadAttention):
            inside |= {id(child) for child in module.modules() if child is not module}
            found += _attention(name, module)
            continue
        known = module_kind(module)
        if known is not None:
            kind, layout, linear = known
            bias = "bias" if isinstance(getattr(module, "bias", None), nn.Parameter) else None
            is_linear = linear and module is not head
            weight = _join(name, "weight")
            found.append(Candidate(name, weight, module, name, "weight", kind, layout, bias, is_linear))
            continue
        found += _plain(name, module)
    return found


def choose(model: nn.Module, patterns: Sequence[str], exclude: Sequence[str] = ()) -> list[Candidate]:
    """Return the candidates that ``patterns`` mean and ``exclude`` does not.

    :raises InputError: a pattern that matches nothing (the nearest names are offered), a bad
        regular expression, or nothing left
    """
    everything = candidates(model)
    for pattern in (*patterns, *exclude):
        if not any(matches(pattern, c) for c in everything):
            raise InputError(_no_match(pattern, model, everything))
    chosen = [c for c in everything if any(matches(p, c) for p in patterns)]
    left = [c for c in chosen if not any(matches(p, c) for p in exclude)]
    if not left:
        what = "exclude leaves nothing of what targets match" if chosen else "adapter.targets is empty"
        raise InputError(f"{what}: name at least one module, or 'all-linear'")
    return left


def matches(pattern: str, candidate: Candidate) -> bool:
    """Tell whether a pattern means this candidate, by its module's or its weight's name."""
    if pattern == ALL_LINEAR:
        return candidate.linear
    names = {candidate.name, candidate.weight}
    if pattern.startswith("re:"):
        return any(_regex(pattern).fullmatch(n) for n in names)
    if any(sign in pattern for sign in "*?["):
        return any(fnmatch.fnmatchcase(n, pattern) for n in names)
    return any(n == pattern or n.endswith("." + pattern) for n in names)


def first_match(table: dict[str, float], candidate: Candidate, default: float) -> float:
    """Return the value of the first pattern that matches."""
    return next((value for pattern, value in table.items() if matches(pattern, candidate)), default)


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern[3:])
    except re.error as error:
        raise InputError(
            f"target pattern {pattern!r}: not a regular expression: {error}; put a backslash before signs that are meant as such"
        ) from None


def _head(model: nn.Module) -> nn.Module | None:
    """Return the output head of a transformers model, which ``all-linear`` leaves alone."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _attention(name: str, module: nn.MultiheadAttention) -> Iterable[Candidate]:
    """Projections of torch's attention, which reads its weights rather than calling its children."""
    for attribute in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"):
        owner, _, last = attribute.rpartition(".")
        parameter = getattr(module.get_submodule(owner), last, None)
        if not isinstance(parameter, nn.Parameter):
            continue
        full = _join(name, attribute)
        bias = {"in_proj_weight": "in_proj_bias", "out_proj.weight": "out_proj.bias"}.get(attribute)
        if module.in_proj_bias is None:
            bias = None
        rows, cols = parameter.shape
        layout = Layout((rows, cols), rows, cols)
        short = full.removesuffix(".weight")
        yield Candidate(short, full, module, name, attribute, "weight", layout, bias, linear=True)


def _plain(name: str, module: nn.Module) -> Iterable[Candidate]:
    """Matrices and stacks of matrices that stand as parameters in a module of another kind."""
    for attribute, parameter in module.named_parameters(recurse=False):
        layout = parameter_layout(parameter)
        if layout is not None and SLOT not in name.split("."):
            full = _join(name, attribute)
            yield Candidate(full, full, module, name, attribute, "weight", layout)


def _no_match(pattern: str, model: nn.Module, everything: Sequence[Candidate]) -> str:
    if pattern == ALL_LINEAR:
        return f"target pattern 'all-linear' matches nothing: {type(model).__name__} has no linear module"
    for name, module in model.named_modules():
        if name == pattern or name.endswith("." + pattern):
            if any(c.module_name.startswith(name + ".") for c in everything):
                return f"target pattern {pattern!r} names a container ({type(module).__name__}); did you mean '{pattern}.*'?"
            return f"target pattern {pattern!r} matches {name} ({type(module).__name__}), which has no matrix to adapt"
    known = {c.name for c in everything} | {c.name.rpartition(".")[2] for c in everything}
    return f"target pattern {pattern!r} matches no module{nearest(pattern.strip('*.'), known)}"


def _join(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute
