"""The laws of adapters about going elsewhere: off the model, into files, to other dtypes, into copies."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Saves, state_of
from mgk_core.contract.errors import InputError
from mgk_core.run import api
from mgk_core.testing.history import same_bits, shake, snapshot, train
from mgk_core.testing.laws import broken, law, require
from mgk_core.testing.subject import Subject, looks, near_live, output, same_state
from mgk_core.testing.zoo import Case


@law("save and load")
def save_and_load(subject: Subject) -> None:
    """The state makes a fresh adapter the same, bit for bit, through memory and through files; a misfit is refused with nothing changed."""
    case, adapter = subject.trained()
    state = {n: t.clone() for n, t in adapter.state_dict().items()}
    other = subject.make()
    fresh = subject.on(other)
    shake(fresh)
    untouched = {n: t.clone() for n, t in fresh.state_dict().items()}
    for misfit, said in _misfits(state):
        try:
            fresh.load_state_dict(misfit)
        except InputError:
            require(
                same_state(untouched, fresh.state_dict()),
                f"a state with {said} was refused, yet changed the adapter",
            )
        else:
            broken(f"a state with {said} was accepted")
    fresh.load_state_dict(state)
    require(
        same_state(state, fresh.state_dict()),
        "the state that was loaded comes back changed",
    )
    require(
        torch.equal(output(other), output(case)), "the same state gives another output"
    )
    if isinstance(adapter, Saves):
        with tempfile.TemporaryDirectory() as folder:
            adapter.save(Path(folder))
            shake(adapter)
            adapter.load(Path(folder))
        require(
            same_state(state, adapter.state_dict()),
            "what was saved to files comes back changed",
        )


def _misfits(state: Mapping[str, Tensor]) -> list[tuple[dict[str, Tensor], str]]:
    last = list(state)[-1]
    return [
        ({k: v for k, v in state.items() if k != last}, "a missing key"),
        ({**state, "no such key": state[last]}, "an unknown key"),
        (
            {**state, last: torch.zeros([n + 1 for n in state[last].shape] or [2])},
            "a misshapen tensor",
        ),
    ]


@law("moves between dtypes and devices")
def moves(subject: Subject) -> None:
    """``model.to()`` another dtype or device moves the adapter too: it runs, trains, and merges to its unmerged outputs there."""
    places: list[torch.dtype | str] = [torch.float64, torch.bfloat16]
    if torch.cuda.is_available():
        places.append("cuda")
    for place in places:
        case, adapter = subject.trained()
        case.model.to(place)
        registered = {id(p) for p in case.model.parameters()}
        require(
            {id(p) for p in adapter.parameters()} <= registered,
            f"{place}: parameters() are no longer the model's",
        )
        train(case, adapter, seed=1, steps=1)
        live, targets = output(case), dict(adapter.targets())
        require(bool(torch.isfinite(live).all()), f"{place}: the output is not finite")
        subject.merge(case.model, adapter)
        # bf16 runs round every sum on both sides, which flipped last bits of the weights show in full
        near_live(case, live, targets, f"{place}: ")


@law("detach is bit-exact")
def detach(subject: Subject) -> None:
    """After ``detach()`` the base has its tensors, flags, module classes and output of before, bit for bit."""
    case = subject.make()
    before, plain, looked = snapshot(case), output(case), looks(case.model)
    adapter = subject.on(case)
    train(case, adapter)
    api.detach(case.model, adapter)
    require(
        not (changed := same_bits(before, case)), f"{changed} are not what they were"
    )
    require(torch.equal(output(case), plain), "the output is not the base's")
    differing = sorted(set(looks(case.model).items()) ^ set(looked.items()), key=str)
    require(not differing, f"something was left behind: {differing[:3]}")
    api.detach(case.model, subject.on(case))  # the name is free again


@law("copies are whole")
def copies(subject: Subject) -> None:
    """A deepcopied or pickled model computes the same, and is independent: training the copy leaves the original unchanged."""
    case, adapter = subject.trained()
    live, state = output(case), {n: t.clone() for n, t in adapter.state_dict().items()}
    for how, twin in (("deepcopy", copy.deepcopy), ("pickle", _pickled)):
        other = Case(case.kind, twin(case.model), case.sample)
        require(
            torch.equal(output(other), live), f"{how}: the copy computes something else"
        )
        own = state_of(other.model).adapters
        require(
            len(own) == 1 and own[0] is not adapter,
            f"{how}: the copy has no adapter of its own",
        )
        registered = {id(p) for p in other.model.parameters()}
        require(
            {id(p) for p in own[0].parameters()} <= registered,
            f"{how}: its adapter trains another model",
        )
        shake(own[0])
        require(
            not torch.equal(output(other), live),
            f"{how}: training the copy's adapter does nothing",
        )
        require(
            same_state(state, adapter.state_dict()),
            f"{how}: training the copy changed the original's adapter",
        )
        require(
            torch.equal(output(case), live),
            f"{how}: training the copy changed the original",
        )


def _pickled(model: nn.Module) -> nn.Module:
    stored = io.BytesIO()
    pickle.dump(model, stored)
    stored.seek(0)
    found: nn.Module = pickle.load(stored)  # noqa: S301 - written one line above
    return found
