r"""Which modules one of PEFT's tuners goes on.

A pattern is a glob on a module's name (``*q_proj``), a name or its last parts, a regular
expression that matches a whole name (``re:.*layers\.[0-3]\..*``), or ``all-linear``: every linear
map but the output head.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from torch import nn

from mgk_core.adapter import SLOT, aliases_of, base_name
from mgk_core.errors import InputError, nearest

ALL_LINEAR = "all-linear"


def choose(model: nn.Module, patterns: Sequence[str], exclude: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Return the modules that ``patterns`` mean and ``exclude`` does not, by their names in the model.

    :raises InputError: a pattern that matches nothing, nothing left, or a module that PEFT cannot stand in for
    """
    known, linear = _candidates(model), _linear(model)
    matched = {pattern: {n for n in known if _matches(pattern, n, linear)} for pattern in (*patterns, *exclude)}
    for pattern, names in matched.items():
        if not names:
            near = {n.rpartition(".")[2] for n in known} | set(known)
            raise InputError(f"target pattern {pattern!r} matches no module{nearest(pattern.strip('*.'), near)}")
    wanted = {n for p in patterns for n in matched[p]} - {n for p in exclude for n in matched[p]}
    if not wanted:
        raise InputError("no target is left: name at least one module in targets, or 'all-linear'")
    chosen = {n: m for n, m in known.items() if n in wanted}
    for name, module in chosen.items():
        _check(model, name, module)
    return chosen


def as_regex(names: Sequence[str]) -> str:
    """Return what means exactly these modules to PEFT, which matches other names by their ends too."""
    return "|".join(re.escape(n) for n in names)


def _candidates(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module that holds a parameter of its own; torch's attention reads its children's past them."""
    found: dict[str, nn.Module] = {}
    inside: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside |= {id(m) for m in module.modules()}
        if not name or id(module) in inside or SLOT in name.split("."):
            continue
        if any(True for _ in module.parameters(recurse=False)):
            found[name] = module
    return found


def _linear(model: nn.Module) -> set[str]:
    head = _head(model)
    return {n for n, m in model.named_modules() if m is not head and (isinstance(m, nn.Linear) or is_transposed(m))}


def is_transposed(module: nn.Module) -> bool:
    """Tell transformers' Conv1D, whose weight is (in, out); transformers need not be imported for it."""
    return any(c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils" for c in type(module).__mro__)


def _matches(pattern: str, raw: str, linear: set[str]) -> bool:
    if pattern == ALL_LINEAR:
        return raw in linear
    name = base_name(raw) or raw
    if pattern.startswith("re:"):
        try:
            return re.fullmatch(pattern[3:], name) is not None
        except re.error as error:
            raise InputError(
                f"target pattern {pattern!r}: not a regular expression: {error}; put a backslash before signs that are meant as such"
            ) from None
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.endswith("." + pattern)


def _head(model: nn.Module) -> nn.Module | None:
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _check(model: nn.Module, name: str, module: nn.Module) -> None:
    if module is _head(model):
        raise InputError(
            f"target {name}: PEFT puts a module in the output head's place, but losses are computed from the head itself;"
            " exclude it, or use type = 'lora'"
        )
    for attribute, parameter in module.named_parameters():
        if SLOT in attribute.split("."):
            continue
        if not parameter.is_floating_point():
            raise InputError(
                f"target {name}: its numbers are packed ({parameter.dtype}); PEFT's tuners need a plain base here:"
                " use type = 'lora', or load the base without quantization"
            )
        others = [a for a in aliases_of(model, parameter) if a != base_name(f"{name}.{attribute}")]
        if others:
            raise InputError(
                f"target {name}: its {attribute} is tied to {', '.join(others)}; a delta would reach both: exclude it"
            )
