"""Which modules one of PEFT's tuners wraps: those that patterns (`mgk_core.model.targets`) choose, where PEFT can replace them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from mgk_core.contract.adapter import SLOT, aliases_of, base_name, may_adapt
from mgk_core.contract.errors import InputError
from mgk_core.model.targets import matches, no_match, output_head, select


def choose(
    model: nn.Module, patterns: Sequence[str], exclude: Sequence[str] = ()
) -> dict[str, nn.Module]:
    """Return the modules that ``patterns`` match and ``exclude`` does not, by their names in the model.

    :raises InputError: a pattern that matches nothing, nothing left, or a module that PEFT cannot replace
    """
    known, linear = _candidates(model), _linear(model)

    def means(pattern: str, raw: str) -> bool:
        return matches(pattern, base_name(raw) or raw, linear=raw in linear)

    names = select(
        list(known),
        patterns,
        exclude,
        means,
        lambda p: no_match(p, known),
        lambda raw: may_adapt(model, base_name(raw) or raw),
    )
    chosen = {n: known[n] for n in names}
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
    head = output_head(model)
    return {
        n
        for n, m in model.named_modules()
        if m is not head and (isinstance(m, nn.Linear) or is_transposed(m))
    }


def is_transposed(module: nn.Module) -> bool:
    """Recognise transformers' Conv1D, whose weight is (in, out); transformers need not be imported for it."""
    return any(
        c.__name__ == "Conv1D" and c.__module__ == "transformers.pytorch_utils"
        for c in type(module).__mro__
    )


def _check(model: nn.Module, name: str, module: nn.Module) -> None:
    if module is output_head(model):
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
        others = [
            a
            for a in aliases_of(model, parameter)
            if a != base_name(f"{name}.{attribute}")
        ]
        if others:
            raise InputError(
                f"target {name}: its {attribute} is tied to {', '.join(others)}; a delta would reach both: exclude it"
            )
