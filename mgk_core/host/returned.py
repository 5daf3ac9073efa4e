"""What a hook may return. Each check yields what is wrong with an answer, the most basic first, in
words that follow "returned …" in an error message.
"""

from __future__ import annotations

import functools
import json
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgk_core.contract import (
    adapter,
    bundle,
    context,
    hookspecs,
    objective,
    outcome,
)
from mgk_core.contract.json_numbers import finite

Arguments = Mapping[str, Any]
Check = Callable[[Any, Arguments], Iterator[str]]


def problem_with(hook: str, answer: Any, arguments: Arguments) -> str | None:
    """Return what is wrong with an answer to a hook; None where it is as the hooks reference requires.

    arguments: what the hook was called with, by name.
    """
    expected = expected_type(hook)
    if not isinstance(answer, expected):
        return f"{_kind(answer)}; expected {_article(expected.__name__)}"
    check = _CHECKS.get(hook)
    return None if check is None else next(check(answer, arguments), None)


@functools.cache
def expected_type(hook: str) -> type:
    """Return the class that a hook's return annotation names; ``object`` for a hook that returns nothing."""
    known: dict[str, Any] = {"torch": torch, "Tensor": torch.Tensor, "nn": nn}
    known |= {"Mapping": Mapping, "Sequence": Sequence}
    for module in (adapter, bundle, context, objective, outcome):
        known |= {name: getattr(module, name) for name in module.__all__}
    known |= {"Spec": object, "SpecRegistry": object, "ProbeSpec": object}
    known |= {"Path": Path}
    hint = typing.get_type_hints(getattr(hookspecs, hook), known)["return"]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    found = next((option for option in options if option is not type(None)), object)
    cls: type = typing.get_origin(found) or found
    return cls


def _kind(answer: Any) -> str:
    return "None" if answer is None else _article(type(answer).__name__)


def _article(name: str) -> str:
    return f"an {name}" if name[0] in "AEIOUaeiou" else f"a {name}"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _not_json(what: str, value: Any) -> Iterator[str]:
    """Yield what is wrong with figures that a run writes down as JSON."""
    if not isinstance(value, Mapping):
        yield f"{what} that is {_kind(value)}; expected a mapping"
    try:
        json.dumps(finite(value))
    except (TypeError, ValueError) as error:
        yield f"{what} that cannot be written as JSON ({error}); expected plain numbers and text"


def _bundle(answer: Any, _: Arguments) -> Iterator[str]:
    if not isinstance(answer.model, nn.Module):
        yield f"a Bundle whose model is {_kind(answer.model)}; expected a torch Module"


def _data(answer: Any, _: Arguments) -> Iterator[str]:
    if not isinstance(answer.train, bundle.TrainSet):
        yield f"PhaseData whose train is {_kind(answer.train)}; expected a TrainSet"
    for probe in answer.probes:
        if not isinstance(probe, bundle.Probe):
            yield f"PhaseData with {_kind(probe)} among its probes; expected Probe objects"
    for note in answer.notes:
        if not isinstance(note, str):
            yield f"PhaseData with {_kind(note)} among its notes; expected text"


def _probes(answer: Any, arguments: Arguments) -> Iterator[str]:
    if len(answer) == 0:
        yield f"no probe for {arguments['name']!r}; expected at least one"
    for probe in answer:
        if not isinstance(probe, bundle.Probe):
            yield f"{_kind(probe)} among the probes; expected Probe objects"
        if not probe.name.startswith(arguments["name"]):
            yield (
                f"a probe named {probe.name!r}; expected a name that begins with"
                f" {arguments['name']!r}"
            )


def _adapter(answer: Any, arguments: Arguments) -> Iterator[str]:
    if answer.name != arguments["name"]:
        yield f"an adapter named {answer.name!r}; expected the name {arguments['name']!r}"
    if answer.identity not in typing.get_args(adapter.Identity):
        yield f"an adapter whose identity is {answer.identity!r}; expected exact, close or none"
    parameters = answer.parameters()
    if not isinstance(parameters, list):
        yield f"an adapter whose parameters() gave {_kind(parameters)}; expected a list"
    for parameter in parameters:
        if not isinstance(parameter, nn.Parameter):
            yield f"an adapter with {_kind(parameter)} in parameters(); expected nn.Parameter"
    targets = answer.targets()
    if not isinstance(targets, Mapping):
        yield f"an adapter whose targets() gave {_kind(targets)}; expected a mapping"
    for target in targets.values():
        if not isinstance(target, adapter.Target):
            yield f"an adapter with {_kind(target)} in targets(); expected Target objects"


def _terms(answer: Any, _: Arguments) -> Iterator[str]:
    for name, term in answer.items():
        if not _text(name):
            yield f"a loss term named {name!r}; expected a name"
        if not callable(term):
            yield f"{_kind(term)} as the loss term {name!r}; expected a function of the step"


def _observers(answer: Any, _: Arguments) -> Iterator[str]:
    if isinstance(answer, str):
        yield "a str; expected a sequence of observers"
    for observer in answer:
        if not callable(getattr(observer, "on_event", None)):
            yield f"{_kind(observer)} as an observer; it has no method on_event(event)"


def _statistics(answer: Any, _: Arguments) -> Iterator[str]:
    for name, tensor in answer.items():
        if not _text(name):
            yield f"statistics under the name {name!r}; expected a name"
        if not isinstance(tensor, torch.Tensor):
            yield f"{_kind(tensor)} as the statistics {name!r}; expected a Tensor"


def _score(answer: Any, arguments: Arguments) -> Iterator[str]:
    probe = arguments["probe"]
    for attribute, asked in (("probe", probe.name), ("metric", probe.metric)):
        found = getattr(answer, attribute)
        if found != asked:
            yield f"a Score of the {attribute} {found!r}; it was asked for {asked!r}"
    if not isinstance(answer.higher_is_better, bool):
        yield f"a Score whose higher_is_better is {answer.higher_is_better!r}; expected a bool"
    if answer.higher_is_better != probe.higher_is_better:
        yield (
            f"a Score whose higher_is_better is {answer.higher_is_better}; the probe has the opposite"
        )
    if not _number(answer.value):
        yield f"a Score whose value is {answer.value!r}; expected a number"
    if not isinstance(answer.n, int) or isinstance(answer.n, bool) or answer.n < 1:
        yield f"a Score whose n is {answer.n!r}; expected the number of items"
    if not _number(answer.stderr) or answer.stderr < 0:
        yield f"a Score whose stderr is {answer.stderr!r}; expected a number >= 0, or NaN"
    if answer.per_item and len(answer.per_item) != answer.n:
        yield f"a Score of {answer.n} items with {len(answer.per_item)} values per_item"
    if not all(_number(value) for value in answer.per_item):
        yield "a Score with something other than numbers in per_item"
    yield from _not_json("a Score with extra figures", answer.extra)


def _proposal(answer: Any, _: Arguments) -> Iterator[str]:
    if not isinstance(answer.keep_apart, bool):
        yield f"a Proposal whose keep_apart is {answer.keep_apart!r}; expected a bool"
    if answer.refuse is not None and not _text(answer.refuse):
        yield f"a Proposal whose refuse is {answer.refuse!r}; expected the reason, or None"
    for transform in answer.transforms:
        if not isinstance(transform, outcome.Transform):
            yield f"a Proposal with {_kind(transform)} among its transforms; expected Transform"


def _merge_report(answer: Any, _: Arguments) -> Iterator[str]:
    for attribute in ("kept", "kept_total", "max_error", "relative"):
        value = getattr(answer, attribute)
        if not _number(value):
            yield f"a MergeReport whose {attribute} is {value!r}; expected a number"
    if not isinstance(answer.exact, bool):
        yield f"a MergeReport whose exact is {answer.exact!r}; expected a bool"
    if answer.undo is not None and not isinstance(answer.undo, outcome.Undo):
        yield f"a MergeReport whose undo is {_kind(answer.undo)}; expected Undo"
    for weight in answer.weights:
        if not isinstance(weight, outcome.WeightReport):
            yield f"a MergeReport with {_kind(weight)} among its weights; expected WeightReport"


def _verdict(answer: Any, _: Arguments) -> Iterator[str]:
    if not isinstance(answer.accept, bool):
        yield f"a Verdict whose accept is {answer.accept!r}; expected True or False"
    if not answer.accept and not answer.refusals:
        yield "a Verdict that refuses without a reason; expected at least one Refusal"
    if answer.accept and answer.refusals:
        yield "a Verdict that accepts and has refusals; expected one or the other"
    for refusal in answer.refusals:
        yield from _refusal(refusal)


def _refusal(refusal: Any) -> Iterator[str]:
    if not isinstance(refusal, outcome.Refusal):
        yield f"a Verdict with {_kind(refusal)} among its refusals; expected Refusal"
    if not _text(refusal.gate) or not _text(refusal.reason):
        yield (
            f"a Refusal of gate {refusal.gate!r} whose reason is {refusal.reason!r}; expected both"
        )
    yield from _not_json(
        f"a Refusal of gate {refusal.gate!r} with evidence", refusal.evidence
    )


def _recovery(answer: Any, arguments: Arguments) -> Iterator[str]:
    if answer.action not in ("propose", "train", "keep_apart", "stop"):
        yield (
            f"a Recovery whose action is {answer.action!r}; expected propose, train, keep_apart"
            " or stop"
        )
    if not _text(answer.method):
        yield f"a Recovery whose method is {answer.method!r}; expected its name"
    if answer.action == "propose":
        if not isinstance(answer.proposal, outcome.Proposal):
            yield f"a Recovery whose proposal is {_kind(answer.proposal)}; expected a Proposal"
        for wrong in _proposal(answer.proposal, arguments):
            yield f"a Recovery with {wrong}"
    if answer.action == "train" and (type(answer.steps) is not int or answer.steps < 1):
        yield f"a Recovery that trains for {answer.steps!r} steps; expected at least 1"
    yield from _not_json("a Recovery with evidence", answer.evidence)


_CHECKS: dict[str, Check] = {
    "mgk_build_model": _bundle,
    "mgk_load_data": _data,
    "mgk_load_probes": _probes,
    "mgk_attach_adapter": _adapter,
    "mgk_loss_terms": _terms,
    "mgk_observers": _observers,
    "mgk_collect_statistics": _statistics,
    "mgk_evaluate": _score,
    "mgk_propose_merge": _proposal,
    "mgk_merge": _merge_report,
    "mgk_gate": _verdict,
    "mgk_recover": _recovery,
}
"""Hooks whose answers have parts to check; of the others the type is enough."""
