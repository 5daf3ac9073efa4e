r"""What an adapter's ``targets`` and ``exclude`` mean: one reading of patterns, for every adapter type.

A pattern is a glob on a name (``*q_proj``), a name or its last parts (``q_proj``,
``self_attn.q_proj``), a regular expression that matches a whole name (``re:.*layers\.[0-3]\..*``),
or ``all-linear``: every linear map but the output head.

`choose_linear` is all that an adapter on linear modules needs. One that adapts other weights too
defines what its candidates are, and chooses among them by `select` and `matches`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from mgk_core.contract.adapter import aliases_of, base_name, may_adapt
from mgk_core.contract.errors import InputError, closest, nearest

T = TypeVar("T")

ALL_LINEAR = "all-linear"
"""Pattern that means every linear map but the output head."""


def choose_linear(
    model: nn.Module, patterns: Sequence[str], exclude: Sequence[str] = ()
) -> dict[str, nn.Linear]:
    """Return name in the base → linear module, in the model's order, for what is meant and not excluded.

    :raises InputError: as `select` does, or a target whose weight is tied, where a delta would
        change the module of the other name as well
    """
    known, head = dict(_linear_modules(model)), output_head(model)

    def means(pattern: str, name: str) -> bool:
        return matches(pattern, name, linear=known[name] is not head)

    names = select(
        list(known),
        patterns,
        exclude,
        means,
        lambda p: no_match(p, known, "linear module"),
        lambda name: may_adapt(model, name),
    )
    for name in names:
        if len(tied := aliases_of(model, known[name].weight)) > 1:
            raise InputError(
                f"target {name}: its weight is tied ({', '.join(tied)}); choose targets without it"
            )
    return {name: known[name] for name in names}


def select(
    known: Sequence[T],
    patterns: Sequence[str],
    exclude: Sequence[str],
    means: Callable[[str, T], bool],
    refuse: Callable[[str], InputError],
    allowed: Callable[[T], bool] = lambda _: True,
) -> list[T]:
    """Return, in their order, the candidates that ``patterns`` mean and ``exclude`` does not.

    :param means: whether a pattern means a candidate: `matches`, with what the candidate is called
    :param refuse: what is raised for a pattern that means no candidate: `no_match`
    :param allowed: whether a candidate may be adapted: `may_adapt`; the others are left out
    :raises InputError: such a pattern (a misspelt one would leave weights untrained in silence), one
        that means only what may not be adapted, a bad regular expression, or nothing left
    """
    for pattern in (*patterns, *exclude):
        if not any(means(pattern, k) for k in known):
            raise refuse(pattern)
    free = [k for k in known if allowed(k)]
    for pattern in patterns:
        if not any(means(pattern, k) for k in free):
            raise InputError(
                f"target pattern {pattern!r} matches only modules outside the language model, which"
                " stay as they are; set base.towers = true to adapt them"
            )
    meant = [k for k in free if any(means(p, k) for p in patterns)]
    left = [k for k in meant if not any(means(p, k) for p in exclude)]
    if not left:
        why = (
            "exclude leaves nothing of what targets match"
            if meant
            else "adapter.targets is empty"
        )
        raise InputError(
            f"no target is left: {why}; name at least one module, or '{ALL_LINEAR}'"
        )
    return left


def matches(pattern: str, name: str, *, linear: bool) -> bool:
    """Whether a pattern means the module or weight of this name.

    :param linear: whether ``all-linear`` means it: a linear map, and not the `output_head`
    :raises InputError: a regular expression that is none
    """
    if pattern == ALL_LINEAR:
        return linear
    if pattern.startswith("re:"):
        return _regex(pattern).fullmatch(name) is not None
    if any(sign in pattern for sign in "*?["):
        return fnmatch.fnmatchcase(name, pattern)
    return name == pattern or name.endswith("." + pattern)


def no_match(pattern: str, known: Iterable[str], what: str = "module") -> InputError:
    """Return the error for a pattern that means nothing: the nearest name, or the last parts of all names.

    :param known: names of what can be adapted
    :param what: the word for it
    """
    if pattern == ALL_LINEAR:
        return InputError(
            f"target pattern '{ALL_LINEAR}' matches nothing: there is no linear module but an output head"
        )
    names = {name for name in known if name}
    # Hundreds of layers have a handful of names between them: q_proj, k_proj, …
    short = {name.rpartition(".")[2] for name in names}
    wanted = pattern.strip("*.")
    near = closest(wanted, names | short)
    hint = nearest(wanted, short) if near is None else f"; did you mean '{near}'?"
    return InputError(f"target pattern {pattern!r} matches no {what}{hint}")


def output_head(model: nn.Module) -> nn.Module | None:
    """Return the output head of a transformers model, which ``all-linear`` leaves alone; None: it has none."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    return head if isinstance(head, nn.Module) else None


def _linear_modules(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield what is called as a linear map: torch's attention reads its output projection's weight uncalled."""
    for raw, module in model.named_modules():
        name = base_name(raw) if raw else ""
        called = isinstance(module, nn.Linear) and not isinstance(
            module, NonDynamicallyQuantizableLinear
        )
        if called and name is not None:
            yield name, module


def _regex(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern[3:])
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"target pattern {pattern!r}: not a regular expression: {error}; put a backslash before signs that are meant as such"
        ) from None


__all__ = [
    "ALL_LINEAR",
    "choose_linear",
    "matches",
    "no_match",
    "output_head",
    "select",
]
