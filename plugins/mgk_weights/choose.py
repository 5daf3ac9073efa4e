"""Which weights are trained: all parameters of a model, among which patterns choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import frozen
from torch import nn

from mgk_core.contract.adapter import base_name, may_adapt
from mgk_core.contract.errors import InputError
from mgk_core.model.forwards import type_named
from mgk_core.model.targets import matches, no_match, output_head, select


@frozen(eq=False)
class Chosen:
    """One parameter of the base.

    name: of the module that has it. weight: its name in the base. module, attribute: the module
    whose forward reads it, and its name from there. linear: whether ``all-linear`` means it.
    """

    name: str
    weight: str
    module: nn.Module
    attribute: str
    linear: bool

    @property
    def parameter(self) -> nn.Parameter:
        """The base's Parameter."""
        return self.module.get_parameter(self.attribute)

    @property
    def names(self) -> Iterator[str]:
        """The weight's name, and that of every module around it."""
        parts = self.weight.split(".")
        for end in range(len(parts), 0, -1):
            yield ".".join(parts[:end])


def parameters_of(model: nn.Module) -> list[Chosen]:
    """Return every parameter of the base under each of its names, in the model's order."""
    found: list[Chosen] = []
    head = output_head(model)
    attention: dict[int, tuple[nn.MultiheadAttention, str]] = {}
    for raw, module in model.named_modules(remove_duplicate=False):
        path = base_name(raw) if raw else ""
        if path is None:
            continue
        if isinstance(module, nn.MultiheadAttention):
            # It reads its output projection's parameters without calling that module.
            attention[id(module.out_proj)] = (module, "out_proj")
        reader, prefix = attention.get(id(module), (module, ""))
        linear = module is not head and (
            isinstance(module, (nn.Linear, nn.MultiheadAttention))
            or type_named(module, "Conv1D")
        )
        for attribute, _ in module.named_parameters(recurse=False):
            weight = f"{path}.{attribute}" if path else attribute
            inside = f"{prefix}.{attribute}" if prefix else attribute
            found.append(Chosen(path, weight, reader, inside, linear))
    return found


def choose(
    model: nn.Module, patterns: Sequence[str], exclude: Sequence[str]
) -> list[Chosen]:
    """Return the parameters that ``patterns`` mean and ``exclude`` does not.

    :raises InputError: a pattern that matches nothing, nothing left, or a weight that cannot be trained
    """
    everything = parameters_of(model)
    chosen = select(
        everything,
        patterns,
        exclude,
        lambda pattern, c: any(
            matches(pattern, n, linear=c.linear) for n in c.names if n
        ),
        lambda pattern: no_match(pattern, (c.name for c in everything)),
        lambda c: may_adapt(model, c.weight),
    )
    for c in chosen:
        check_trainable(c)
    return chosen


def check_trainable(chosen: Chosen) -> None:
    """Raise `InputError` where a trained weight would not be what the module computes with."""
    if not chosen.parameter.is_floating_point():
        raise InputError(
            f"target {chosen.weight}: its numbers are packed ({chosen.parameter.dtype}), so they cannot be"
            " trained; load the base without quantize, or use a lora"
        )
    if isinstance(chosen.module, nn.RNNBase):
        raise InputError(
            f"target {chosen.weight}: {type(chosen.module).__name__} keeps a flat copy of its weights; exclude it"
        )
    if getattr(chosen.module, "max_norm", None) is not None:
        raise InputError(
            f"target {chosen.weight}: an embedding with max_norm rewrites its weight; exclude it"
        )
