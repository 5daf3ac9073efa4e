"""Any order of attach, train, merge, rollback, detach, save, load and cast, against a plain float64 model."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

import mgk
from mgk_core.contract.adapter import all_disabled, base_state_dict, state_of
from mgk_core.contract.errors import MergeError
from mgk_core.testing.history import same_bits, shake, snapshot, train
from mgk_core.testing.strategies import SEEDS, scales
from mgk_core.testing.zoo import KINDS, make

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.bfloat16: 2.0**-9}


class MergeMachine(RuleBasedStateMachine):
    """expected: weight name → what weight + residual should be, in float64, computed without mgk_merge.

    size: weight name → the largest |weight| so far, which rounding errors are proportional to.
    """

    @initialize(
        kind=st.sampled_from(KINDS),
        dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
        seed=SEEDS,
    )
    def start(self, kind, dtype, seed):
        self.case = make(kind, seed=seed, dtype=dtype, layers=2)
        self.x = self.case.inputs(seed)
        self.expected = {
            n: t.detach().double() for n, t in base_state_dict(self.case.model).items()
        }
        self.size = {n: t.abs().max().item() for n, t in self.expected.items()}
        self.undo = None
        self.count = self.merges = 0
        self.coarsest = dtype

    @property
    def adapters(self):
        return state_of(self.case.model).adapters

    @property
    def dtype(self):
        return next(
            p for n, p in self.case.model.named_parameters() if "mgk" not in n
        ).dtype

    @precondition(lambda self: len(self.adapters) < 3)
    @rule(
        scale=scales((1, 2)), seed=SEEDS, kind=st.sampled_from(["lora", "lora", "dora"])
    )
    def attach(self, scale, seed, kind):
        rank, alpha = scale
        before = snapshot(self.case)
        name = f"phase.{self.count}"
        self.count += 1
        mgk.attach(
            self.case.model,
            kind,
            name=name,
            seed=seed,
            rank=rank,
            alpha=alpha,
            targets=["*"],
        )
        assert not same_bits(before, self.case)

    @precondition(lambda self: self.adapters)
    @rule(data=st.data(), seed=SEEDS, real=st.booleans())
    def train(self, data, seed, real):
        adapter = data.draw(st.sampled_from(self.adapters))
        before = snapshot(self.case)
        if real:
            train(self.case, adapter, seed=seed, steps=1, size=0.05)
        else:
            shake(adapter, seed=seed, size=0.05)
        assert not same_bits(before, self.case)

    @precondition(lambda self: self.adapters)
    @rule(
        data=st.data(),
        undo=st.sampled_from(["memory", "disk"]),
        scale=st.sampled_from([1.0, 1.0, 0.5]),
    )
    def merge(self, data, undo, scale):
        adapter = data.draw(st.sampled_from(self.adapters))
        before, old = snapshot(self.case), (dict(self.expected), dict(self.size))
        residuals = {
            n: t.clone() for n, t in state_of(self.case.model).residuals.items()
        }
        new = {
            n: self.expected[n]
            + scale * (adapter.merged_weight(n, self.visible(n)) - self.visible(n))
            for n in adapter.targets()
        }
        # DoRA's fp32 factor is 1 to fp32's rounding only, seen from float64
        nothing = all(
            (new[n] - self.expected[n]).abs().max()
            <= 4 * UNIT[torch.float32] * self.size[n]
            for n in new
        )
        try:
            report = mgk.merge(self.case.model, adapter, undo=undo, scale=scale)
        except MergeError as error:
            assert nothing or "one of them is more than" in str(error)  # noqa: PT017 - both ways are right here
            assert not same_bits(before, self.case)
            assert adapter in self.adapters
            return
        self.expected |= new
        self.merges += 1
        for name, tensor in new.items():
            self.size[name] = max(self.size[name], tensor.abs().max().item())
        self.undo = (report, before, old, residuals, self.dtype)

    def visible(self, name):
        """The weight as the forward pass sees it, in float64."""
        return base_state_dict(self.case.model)[name].detach().double()

    @precondition(lambda self: self.undo is not None)
    @rule()
    def rollback(self):
        report, before, (self.expected, self.size), residuals, dtype = self.undo
        self.undo = None
        mgk.rollback(self.case.model, report)
        if dtype == self.dtype:
            assert not same_bits(before, self.case)
            now = state_of(self.case.model).residuals
            assert now.keys() == residuals.keys()
            assert all(torch.equal(now[n], t) for n, t in residuals.items())

    @precondition(lambda self: self.adapters)
    @rule(data=st.data())
    def detach(self, data):
        adapter = data.draw(st.sampled_from(self.adapters))
        before = snapshot(self.case)
        mgk.detach(self.case.model, adapter)
        assert not same_bits(before, self.case)

    @precondition(lambda self: self.adapters)
    @rule(data=st.data(), seed=SEEDS)
    def save_and_load(self, data, seed):
        adapter = data.draw(st.sampled_from(self.adapters))
        state = {n: t.clone() for n, t in adapter.state_dict().items()}
        with tempfile.TemporaryDirectory() as folder:
            adapter.save(Path(folder))
            shake(adapter, seed=seed)
            adapter.load(Path(folder))
        assert all(torch.equal(t, state[n]) for n, t in adapter.state_dict().items())

    @rule()
    def copy(self):
        """Go on with a deepcopy: everything must have come along."""
        live = self.case.model(self.x)
        self.case = type(self.case)(
            self.case.kind, copy.deepcopy(self.case.model), self.case.sample
        )
        assert torch.equal(self.case.model(self.x), live)
        self.undo = None  # its tensors are those of the other model

    @rule(dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    def cast(self, dtype):
        """model.to(dtype): the visible weights are rounded, residuals stay beside them."""
        before = {
            n: t.detach().to(dtype) for n, t in base_state_dict(self.case.model).items()
        }
        self.case.model.to(dtype)
        assert not same_bits(before, self.case)
        residuals = state_of(self.case.model).residuals
        for name, weight in before.items():
            self.expected[name] = weight.double() + (
                residuals[name].double() if name in residuals else 0
            )
        self.undo = None
        self.merges = 0
        self.x = self.x.to(dtype) if self.x.is_floating_point() else self.x

    @invariant()
    def weights_are_what_they_should_be(self):
        """|weight + residual − expected| ≤ roundings of the fp32 (float64) sum, a handful per merge."""
        if not hasattr(self, "case"):
            return
        residuals = state_of(self.case.model).residuals
        unit = (
            UNIT[torch.float64] if self.dtype == torch.float64 else UNIT[torch.float32]
        )
        for name, tensor in base_state_dict(self.case.model).items():
            total = tensor.detach().double() + (
                residuals[name].double() if name in residuals else 0
            )
            error = (total - self.expected[name]).abs().max().item()
            assert error <= 24 * unit * (1 + self.merges) * max(1.0, self.size[name]), (
                name
            )

    @invariant()
    def live_is_what_the_weights_say(self):
        """The live output is that of a plain model whose weights the attached adapters changed in order."""
        if not hasattr(self, "case") or self.dtype == torch.bfloat16:
            return
        twin = copy.deepcopy(self.case.model).double()
        for name in {n for a in self.adapters for n in a.targets()}:
            weight = self.visible(name)
            for adapter in self.adapters:
                if name in adapter.targets():
                    weight = adapter.merged_weight(name, weight)
            twin.get_parameter(name).data.copy_(weight)
        x = self.x.double() if self.x.is_floating_point() else self.x
        with all_disabled(twin), torch.no_grad():
            wanted = twin(x)
        live = self.case.model(self.x)
        # unit roundoff · inner dimension · layers, and 16 for weights that grew in between
        assert (live.double() - wanted).norm() <= UNIT[
            self.dtype
        ] * 40 * 5 * 16 * wanted.norm()


MergeMachine.TestCase.settings = settings(settings.default, stateful_step_count=12)
TestMergeMachine = MergeMachine.TestCase
