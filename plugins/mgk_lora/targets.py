"""Which weights an adapter is attached to: candidates of a model, among which patterns (`mgk_core.model.targets`) choose."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from mgk_core.contract.adapter import SLOT, base_name, may_adapt
from mgk_core.contract.errors import InputError
from mgk_core.model.targets import matches, no_match, output_head, select
from mgk_lora.kinds import Candidate, Layout, module_kind, parameter_layout


def candidates(model: nn.Module) -> list[Candidate]:
    """Return every weight that can be adapted, in the model's order; a module used twice counts once."""
    found: list[Candidate] = []
    inside: set[int] = set()  # children that their parent uses without calling them
    head = output_head(model)
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
            bias = (
                "bias"
                if isinstance(getattr(module, "bias", None), nn.Parameter)
                else None
            )
            # A subclass with a forward of its own, such as a router, is no linear map.
            is_linear = linear and kind == "linear" and module is not head
            weight = _join(name, "weight")
            found.append(
                Candidate(
                    name, weight, module, name, "weight", kind, layout, bias, is_linear
                )
            )
            continue
        found += _plain(name, module)
    return found


def choose(
    model: nn.Module,
    patterns: Sequence[str],
    exclude: Sequence[str] = (),
    everything: Sequence[Candidate] | None = None,
) -> list[Candidate]:
    """Return the candidates that ``patterns`` mean and ``exclude`` does not.

    :param everything: the model's `candidates`, where they are known already
    :raises InputError: a pattern that matches nothing (the nearest names are offered), a bad
        regular expression, or nothing left
    """
    everything = candidates(model) if everything is None else everything
    return select(
        everything,
        patterns,
        exclude,
        means,
        lambda p: _no_match(p, model, everything),
        lambda candidate: may_adapt(model, candidate.weight),
    )


def means(pattern: str, candidate: Candidate) -> bool:
    """Return whether a pattern matches this candidate, by its module's or its weight's name."""
    return any(
        matches(pattern, n, linear=candidate.linear)
        for n in (candidate.name, candidate.weight)
    )


def first_match(table: dict[str, float], candidate: Candidate, default: float) -> float:
    """Return the value of the first pattern that matches."""
    return next(
        (value for pattern, value in table.items() if means(pattern, candidate)),
        default,
    )


def _attention(name: str, module: nn.MultiheadAttention) -> Iterable[Candidate]:
    """Projections of torch's attention, which reads its weights rather than calling its children."""
    for attribute in (
        "in_proj_weight",
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ):
        owner, _, last = attribute.rpartition(".")
        parameter = getattr(module.get_submodule(owner), last, None)
        if not isinstance(parameter, nn.Parameter):
            continue
        full = _join(name, attribute)
        bias = {
            "in_proj_weight": "in_proj_bias",
            "out_proj.weight": "out_proj.bias",
        }.get(attribute)
        if module.in_proj_bias is None:
            bias = None
        rows, cols = parameter.shape
        layout = Layout((rows, cols), rows, cols)
        short = full.removesuffix(".weight")
        yield Candidate(
            short, full, module, name, attribute, "weight", layout, bias, linear=True
        )


def _plain(name: str, module: nn.Module) -> Iterable[Candidate]:
    """Matrices and stacks of matrices that are parameters of a module of another kind."""
    for attribute, parameter in module.named_parameters(recurse=False):
        layout = parameter_layout(parameter)
        if layout is not None and SLOT not in name.split("."):
            full = _join(name, attribute)
            yield Candidate(full, full, module, name, attribute, "weight", layout)


def _no_match(
    pattern: str, model: nn.Module, everything: Sequence[Candidate]
) -> InputError:
    """Describe a module that has no matrix of its own; for any other name, return the message of `no_match`."""
    for name, module in model.named_modules():
        if name == pattern or name.endswith("." + pattern):
            kind = type(module).__name__
            if any(c.module_name.startswith(name + ".") for c in everything):
                return InputError(
                    f"target pattern {pattern!r} names a container ({kind}); did you mean '{pattern}.*'?"
                )
            return InputError(
                f"target pattern {pattern!r} matches {name} ({kind}), which has no matrix to adapt"
            )
    return no_match(pattern, (c.name for c in everything))


def _join(name: str, attribute: str) -> str:
    return f"{name}.{attribute}" if name else attribute
