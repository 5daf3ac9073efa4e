"""What pluggy and the training loop call in place of a plugin's own functions.

Each calls the function, puts the plugin's name on what it raises, and checks what it returns. So a
fault is found where it happens and the plugin that made it is known, not guessed.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from attrs import define, evolve
from torch import Tensor

from mgk_core.contract import hookspecs
from mgk_core.contract.bundle import Batch, Score
from mgk_core.contract.context import Averages, Observer, StepFn, StepOut
from mgk_core.contract.errors import PluginError
from mgk_core.contract.objective import Objective, ObjectiveLoss
from mgk_core.contract.outcome import LossTerm, MergeReport
from mgk_core.host.blame import Call, Directory
from mgk_core.host.returned import problem_with

MARK = f"{hookspecs.PROJECT}_impl"
"""Attribute that the decorator ``hookimpl`` puts on a function."""


_arguments: ContextVar[Mapping[str, Any]] = ContextVar("mgk_hook_arguments", default={})  # noqa: B039


@contextmanager
def called_with(arguments: Mapping[str, Any]) -> Iterator[None]:
    """Let answers be checked against what the hook inside the block is called with."""
    token = _arguments.set(arguments)
    try:
        yield
    finally:
        _arguments.reset(token)


class StandIn:
    """The guarded functions of one plugin, under the names of their hooks: what pluggy registers."""


def guarded(plugin: Any, name: str, directory: Directory) -> StandIn:
    """Return an object with a guarded function for each hook that a plugin implements."""
    found = StandIn()
    for hook in hookspecs.spec_names():
        function = getattr(plugin, hook, None)
        if hasattr(function, MARK):
            call = Call(directory, name, hook, hook)
            setattr(found, hook, _guard(call, function))
    return found


def _guard(call: Call, function: Any) -> Callable[..., Any]:
    """Return a function of the same arguments that calls a plugin's and checks its answer."""
    options = getattr(function, MARK)
    if options.get("hookwrapper"):
        raise PluginError(
            call.plugin, f"{call.hook} uses hookwrapper=True; use wrapper=True"
        )
    make = _wrapper if options["wrapper"] else _plain
    return functools.wraps(function)(make(call, function))


def _plain(call: Call, function: Any) -> Callable[..., Any]:
    def guard(*values: Any) -> Any:
        place = Path.cwd()
        with call:
            answer = function(*values)
        if place != (found := Path.cwd()):
            os.chdir(place)
            who = f"plugin {call.directory.describe(call.plugin)}"
            text = f"{who}: {call.hook} left the working directory at {found}; restore what was set before"
            raise PluginError(call.plugin, text, call.hook)
        return _accepted(call, answer)

    return guard


def _accepted(call: Call, answer: Any) -> Any:
    """Check an answer; return it, with a guard around what is called later."""
    if answer is not None:
        call.require(problem_with(call.hook, answer, _arguments.get()))
        return _guarded_answer(call, answer)
    return None


def _guarded_answer(call: Call, answer: Any) -> Any:
    if call.hook == "mgk_loss_terms":
        return {name: _term(call, name, term) for name, term in answer.items()}
    if call.hook == "mgk_observers":
        return [_observer(call, observer) for observer in answer]
    if call.hook == "mgk_make_objective" and not isinstance(answer, GuardedObjective):
        return GuardedObjective(evolve(call, what="the objective"), answer)
    if call.hook == "mgk_merge" and answer.undo is not None:
        return _with_undo(call, answer)
    if call.hook == "mgk_make_step" and not isinstance(answer, GuardedStep):
        return GuardedStep(evolve(call, what="the step"), answer)
    return answer


def _with_undo(call: Call, report: MergeReport) -> MergeReport:
    if call.directory.is_own(call.plugin) or isinstance(report.undo, GuardedUndo):
        return report
    undo = GuardedUndo(evolve(call, what="the undo of its merge"), report.undo)
    return evolve(report, undo=undo)


def _term(call: Call, name: str, term: LossTerm) -> LossTerm:
    if isinstance(term, GuardedTerm):  # of another plugin, in the hands of a wrapper
        return term
    return GuardedTerm(evolve(call, what=f"loss term {name!r}"), term)


def _observer(call: Call, observer: Observer) -> Observer:
    if isinstance(observer, GuardedObserver):
        return observer
    return GuardedObserver(
        evolve(call, what=f"observer {type(observer).__name__}"), observer
    )


def _wrapper(call: Call, function: Any) -> Callable[..., Any]:
    """Guard a wrapper: a generator that yields once, gets the answer of the others, and returns its own."""
    if not inspect.isgeneratorfunction(function):
        raise PluginError(
            call.plugin, f"{call.hook} is marked wrapper=True and never yields"
        )

    def guard(*values: Any) -> Generator[None, Any, Any]:
        with evolve(call, during=True):
            inner = function(*values)
            next(inner)
        result = None
        try:
            result = yield
        except BaseException as error:  # noqa: BLE001 - the wrapper may handle what others raised
            answer = _resumed(call, inner.throw, error)
        else:
            answer = _resumed(call, inner.send, result)
        accepted = _accepted_of_all(call, answer)
        _check_kept(call, result, accepted)
        return accepted

    return guard


def _check_kept(call: Call, result: Any, answer: Any) -> None:
    """Check what a wrapper may not take away: another gate's refusal, and items of a score."""
    if call.hook == "mgk_gate":
        kept = {id(r) for v in answer or () for r in _refusals(v)}
        for refusal in (r for v in result or () for r in _refusals(v)):
            if id(refusal) not in kept:
                raise call.refuse(
                    f"verdicts without the refusal of gate {refusal.gate!r}; a wrapper may add refusals only"
                )
    if isinstance(result, Score) and isinstance(answer, Score) and answer.n != result.n:
        raise call.refuse(
            f"a Score of {answer.n} items where {result.n} were measured; a wrapper keeps n"
        )


def _refusals(verdict: Any) -> Sequence[Any]:
    return tuple(getattr(verdict, "refusals", None) or ())


def _resumed(call: Call, resume: Callable[[Any], Any], value: Any) -> Any:
    """Let a wrapper run to its end; return what it returns. What it lets through is not its own."""
    try:
        resume(value)
    except StopIteration as stop:
        return stop.value
    except BaseException as error:
        if error is value:
            raise
        with call:
            raise
    raise PluginError(
        call.plugin,
        f"the wrapper {call.hook} of plugin {call.directory.describe(call.plugin)} yields twice",
        call.hook,
    )


def _accepted_of_all(call: Call, answer: Any) -> Any:
    """Check what a wrapper made of the answers: one of a firstresult hook, a list of all others."""
    if hookspecs.slot_of(call.hook) is not None:
        return _accepted(call, answer)
    if not isinstance(answer, list):
        raise call.refuse(
            f"{type(answer).__name__}; a wrapper of this hook returns a list"
        )
    return [_accepted(call, found) for found in answer]


@define(eq=False)
class GuardedTerm:
    """A loss term that must return a 0-dim floating-point tensor."""

    call: Call
    term: LossTerm

    @property
    def owner(self) -> str:
        """Name the term's plugin."""
        return f"plugin {self.call.directory.describe(self.call.plugin)}"

    def __call__(self, step: int) -> Tensor:
        """Call the term."""
        with self.call:
            found = self.term(step)
        _require_scalar(self.call, found)
        return found


def _require_scalar(call: Call, found: Any, what: str = "") -> None:
    """Refuse what is not a 0-dim floating-point tensor. what: which part of an answer it is."""
    if isinstance(found, Tensor) and not found.dim() and found.is_floating_point():
        return
    shape = f" of shape {tuple(found.shape)}" if isinstance(found, Tensor) else ""
    raise call.refuse(
        f"{type(found).__name__}{shape}{what}; expected a floating-point tensor of shape ()"
    )


@define(eq=False)
class GuardedObjective(Objective):
    """An objective whose losses must be sums and counts with figures of its examples."""

    call: Call
    objective: Objective

    @property
    def unit(self) -> str:
        """What the count counts."""
        return self.objective.unit

    def prepare(self) -> None:
        """Prepare the objective."""
        with self.call:
            self.objective.prepare()

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate rows."""
        with self.call:
            return self.objective.batch(rows)

    def loss(self, batch: Batch) -> ObjectiveLoss:
        """Compute the loss."""
        with self.call:
            found = self.objective.loss(batch)
        if not isinstance(found, ObjectiveLoss):
            raise self.call.refuse(
                f"{type(found).__name__} from loss; expected ObjectiveLoss"
            )
        _require_scalar(self.call, found.total, " as total")
        _require_scalar(self.call, found.count, " as count")
        for name, values in found.figures.items():
            if not isinstance(values, Tensor) or values.requires_grad:
                raise self.call.refuse(
                    f"the figure {name!r} as {type(values).__name__}; expected a tensor"
                    " without a gradient"
                )
        return found

    def dev(self) -> Sequence[Batch]:
        """Return the dev set's micro-batches."""
        with self.call:
            return self.objective.dev()


@define(eq=False)
class GuardedUndo:
    """An undo whose errors carry its plugin's name."""

    call: Call
    undo: Any

    def restore(self) -> None:
        """Put the old weights back."""
        with self.call:
            self.undo.restore()

    def release(self) -> None:
        """Forget the old weights."""
        with self.call:
            self.undo.release()


@define(eq=False)
class GuardedObserver:
    """An observer whose errors carry its plugin's name, and whose state is JSON."""

    call: Call
    observer: Observer

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Pass an event on."""
        with self.call:
            self.observer.on_event(event)

    def state_dict(self) -> Any:
        """Return the observer's state; None where it keeps none."""
        if not hasattr(self.observer, "state_dict"):
            return None
        with self.call:
            state = self.observer.state_dict()
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise self.call.refuse(f"a state that is not JSON ({error})") from error
        return state

    def load_state_dict(self, state: Any) -> None:
        """Restore the observer's state."""
        if hasattr(self.observer, "load_state_dict"):
            with self.call:
                self.observer.load_state_dict(state)


@define(eq=False)
class GuardedStep:
    """A step function that must return a `StepOut`."""

    call: Call
    step: StepFn

    def __call__(self, micro_batches: Sequence[Batch], step: int) -> StepOut:
        """Perform the step."""
        with self.call:
            found = self.step(micro_batches, step)
        if not isinstance(found, StepOut):
            raise self.call.refuse(f"{type(found).__name__}; expected StepOut")
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Return the optimizer's state."""
        with self.call:
            return self.step.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the optimizer's state."""
        self.step.load_state_dict(state)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the weights to evaluate in place; those of a step that averages nothing are."""
        if not isinstance(self.step, Averages):
            yield
            return
        with self.step.averaged():
            yield

    def finish(self) -> None:
        """Put the weights to merge in place."""
        if isinstance(self.step, Averages):
            with self.call:
                self.step.finish()
