"""The step, on a real phase: the reference network, LoRA, a teacher's examples."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import mse_loss

from mgk_sgd import step as module
from mgk_sgd.step import StandardStep, buffer_of, divided

SGDS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"weight_decay": 0.1},
]
AUTOGRAD = {"type": "standard", "gradients": "autograd"}


def values(ctx: Any) -> list[torch.Tensor]:
    """Return copies of the adapter's parameters."""
    return [p.detach().clone() for p in ctx.phase.adapter.parameters()]


def train(ctx: Any, batches: list[Any], **options: Any) -> list[torch.Tensor]:
    """Run one step per batch; return the parameters."""
    step = StandardStep(ctx, **options)
    for i, batch in enumerate(batches):
        step([batch], i)
    return values(ctx)


def bare_loop(
    ctx: Any,
    batches: list[Any],
    optimizer: torch.optim.Optimizer,
    clip: float | None = None,
) -> None:
    """Train as one would without mgk: backward of the mean loss, the optimizer's own step."""
    for batch in batches:
        optimizer.zero_grad()
        loss = mse_loss(
            ctx.phase.model(batch.inputs), batch.targets, reduction="sum"
        ) / len(batch.inputs)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(ctx.phase.adapter.parameters(), clip)
        optimizer.step()


@pytest.mark.parametrize("options", SGDS, ids=str)
def test_sgd_is_torchs_sgd_bit_for_bit(
    make_phase: Any, batches: Any, options: dict[str, Any]
) -> None:
    """Dividing by the count of 16 is exact in binary, so nothing may differ from torch's own loop."""
    table = {"optimizer": {"type": "sgd", "lr": 1e-3, **options}, "step": AUTOGRAD}
    ours, theirs = make_phase(table), make_phase(table)
    found = train(ours, batches(ours, 12))
    optimizer = torch.optim.SGD(theirs.phase.adapter.parameters(), lr=1e-3, **options)
    bare_loop(theirs, batches(theirs, 12), optimizer)
    assert all(torch.equal(a, b) for a, b in zip(found, values(theirs), strict=True))


def adamw_by_hand(
    p: Any,
    grads: list[Any],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> Any:
    """Loshchilov & Hutter's update in float64."""
    p, m, v = p.double(), 0.0, 0.0
    for t, g in enumerate(grads, start=1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2
        p = p * (1 - lr * decay) - lr * (m / (1 - betas[0] ** t)) / (
            (v / (1 - betas[1] ** t)).sqrt() + eps
        )
    return p


def test_adamw_is_its_formula(make_phase: Any, batches: Any) -> None:
    """AdamW follows the paper, with betas, eps and decay as they were given.

    Ten steps of at most lr each, fp32: an error of 10 · lr · 1e-5 is a hundred roundings of every step.
    """
    options = {"lr": 1e-2, "betas": [0.8, 0.95], "eps": 1e-4, "weight_decay": 0.1}
    ctx = make_phase({"optimizer": {"type": "adamw", **options}})
    start = values(ctx)
    step = StandardStep(ctx)
    grads: list[list[torch.Tensor]] = []
    for i, batch in enumerate(batches(ctx, 10)):
        _, count, found = step.gradient_of(batch)
        grads.append([g.double() / float(count) for g in found])
        step([batch], i)
    for k, (begun, now) in enumerate(zip(start, values(ctx), strict=True)):
        expected = adamw_by_hand(
            begun, [g[k] for g in grads], 1e-2, (0.8, 0.95), 1e-4, 0.1
        )
        assert (now.double() - expected).abs().max() < 10 * 1e-2 * 1e-5


@pytest.mark.parametrize("type_", ["sgd", "adamw"])
def test_bit_equal_twice(make_phase: Any, batches: Any, type_: str) -> None:
    """The same phase trained twice ends in the same bits."""
    runs = []
    for _ in range(2):
        ctx = make_phase({"optimizer": {"type": type_, "lr": 1e-3}})
        runs.append(train(ctx, batches(ctx, 20)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize(("type_", "lr"), [("sgd", 1e-3), ("adamw", 1e-2)])
def test_converges(make_phase: Any, batches: Any, type_: str, lr: float) -> None:
    """After five passes over the phase's data less than half of the base's loss is left."""
    ctx = make_phase({"optimizer": {"type": type_, "lr": lr}})
    step = StandardStep(ctx)
    losses = [float(step([b], i).loss) for i, b in enumerate(batches(ctx, 20) * 5)]
    assert sum(losses[-20:]) / 20 < 0.5 * losses[0]


@pytest.mark.parametrize("gradients", ["auto", "autograd"])
def test_a_step_does_not_depend_on_how_it_is_split(
    make_phase: Any, gradients: str
) -> None:
    """Micro-batches of any sizes give the gradient of the whole batch, up to fp32 summation.

    At most 16 partial sums, each rounded at 6e-8 relative to the sum of magnitudes: 1e-5 is ample
    for a sum whose terms cancel to a tenth.
    """
    ctx = make_phase({"step": {"type": "standard", "gradients": gradients}})
    start, rows, train_set = values(ctx), list(range(16)), ctx.phase.data.train
    step = StandardStep(ctx)

    def stepped(sizes: list[int]) -> tuple[list[torch.Tensor], float]:
        for p, v in zip(ctx.phase.adapter.parameters(), start, strict=True):
            p.data.copy_(v)
        edges = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
        micro = [train_set.batch(rows[a:b]) for a, b in pairwise(edges)]
        out = step(micro, 0)
        assert float(out.count) == 16
        return [v - s for v, s in zip(values(ctx), start, strict=True)], float(out.loss)

    whole, loss = stepped([16])

    @given(
        st.lists(st.integers(1, 8), min_size=1, max_size=16).filter(
            lambda s: sum(s) <= 16
        )
    )
    @settings(max_examples=25, deadline=None)
    def check(sizes: list[int]) -> None:
        moved, found = stepped(sizes + ([16 - sum(sizes)] if sum(sizes) < 16 else []))
        assert found == pytest.approx(loss, rel=1e-5)
        for a, b in zip(moved, whole, strict=True):
            assert (a - b).norm() <= 1e-5 * b.norm() + 1e-9

    check()


def test_loss_terms_count_once_per_step(make_phase: Any, batches: Any) -> None:
    """A term adds its own gradient once, however many micro-batches there are, and is reported apart."""

    def decay(adapter: Any) -> Any:
        return lambda step: (
            (step + 1) * 0.5 * sum((p**2).sum() for p in adapter.parameters())
        )

    plain, with_term = (
        make_phase({"step": AUTOGRAD}),
        make_phase({"step": AUTOGRAD}, terms=[decay]),
    )
    start = values(plain)
    batch = batches(plain, 1)[0]
    halves = [
        with_term.phase.data.train.batch(list(range(8))),
        with_term.phase.data.train.batch(list(range(8, 16))),
    ]
    StandardStep(plain)([batch], 2)
    out = StandardStep(with_term)(halves, 2)
    lr = plain.phase.phase.optimizer.lr
    assert float(out.terms) == pytest.approx(
        1.5 * sum(float((p**2).sum()) for p in start), rel=1e-5
    )
    for a, b, p in zip(values(with_term), values(plain), start, strict=True):
        assert torch.allclose(
            a, b - lr * 3 * p, atol=1e-8, rtol=1e-5
        )  # two ways of summing, each once rounded


def test_clipping_is_torchs(make_phase: Any, batches: Any) -> None:
    """A gradient above the limit is scaled to it, as `torch.nn.utils.clip_grad_norm_` does; the norm told is before."""
    table = {"optimizer": {"type": "sgd", "lr": 1e-3, "clip": 0.5}, "step": AUTOGRAD}
    ours, theirs = make_phase(table), make_phase(table)
    found = train(ours, batches(ours, 5))
    bare_loop(
        theirs,
        batches(theirs, 5),
        torch.optim.SGD(theirs.phase.adapter.parameters(), lr=1e-3),
        clip=0.5,
    )
    for a, b in zip(found, values(theirs), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-9)
    assert float(StandardStep(ours)(batches(ours, 1), 5).grad_norm) > 0.5


def test_learning_rates_follow_the_schedule(make_phase: Any, batches: Any) -> None:
    """The step sets every group's rate by step number and total, and reports the first."""
    options = {
        "type": "sgd",
        "lr": 0.5,
        "schedule": "linear",
        "warmup_steps": 2,
        "min_lr_ratio": 0.1,
    }
    ctx = make_phase({"optimizer": options}, steps=12)
    step = StandardStep(ctx)
    batch = batches(ctx, 1)[0]
    rates = [step([batch], i).lr for i in (0, 1, 2, 7, 12)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.275, 0.05])
    assert ctx.phase.optimizer.param_groups[0]["lr"] == rates[-1]


def test_a_second_step_of_a_phase_has_the_full_rate(
    make_phase: Any, batches: Any
) -> None:
    """After a recovery the rate is that of the configuration, not what the schedule had left of it."""
    ctx = make_phase(
        {"optimizer": {"type": "sgd", "lr": 0.5, "schedule": "linear"}}, steps=10
    )
    batch = batches(ctx, 1)[0]
    assert StandardStep(ctx)([batch], 9).lr == pytest.approx(0.05)
    assert StandardStep(ctx)([batch], 0).lr == 0.5


class Foreign(torch.optim.Optimizer):
    """Another plugin's optimizer: state of its own, replaced rather than written to."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                state["mean"] = 0.9 * state.get("mean", torch.zeros_like(p)) + p.grad
                p.sub_(group["lr"] * state["mean"])


OPTIMIZERS: dict[str, Any] = {
    "sgd": None,
    "momentum": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-3, foreach=True),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
    "foreign": Foreign,
}


@pytest.mark.parametrize("wait", [True, False], ids=["read", "on the device"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_finite_changes_nothing(
    make_phase: Any, batches: Any, name: str, *, wait: bool
) -> None:
    """With a NaN batch in between, parameters end in the bits of a run without it, for any optimizer.

    Both where the flag may be read and where it must stay on the device.
    """
    clean, dirty = (
        make_phase(optimizer=OPTIMIZERS[name]),
        make_phase(optimizer=OPTIMIZERS[name]),
    )
    good = batches(clean, 6)
    expected = train(clean, good, wait=wait)
    bad = evolve(good[0], inputs=torch.full_like(good[0].inputs, math.nan))
    step = StandardStep(dirty, wait=wait)
    flags = []
    for i, batch in enumerate([good[0], bad, *good[1:]]):
        flags.append(float(step([batch], i).skipped))
    assert flags == [0, 1, 0, 0, 0, 0, 0]
    assert all(torch.equal(a, b) for a, b in zip(values(dirty), expected, strict=True))


@pytest.mark.parametrize("type_", ["sgd", "momentum", "adamw"])
def test_a_first_step_that_is_not_finite_leaves_no_trace(
    make_phase: Any, batches: Any, type_: str
) -> None:
    """Even where the optimizer has no state yet, a skipped step on the device starts none that matters."""
    options = (
        {"type": "sgd", "momentum": 0.9} if type_ == "momentum" else {"type": type_}
    )
    clean, dirty = (
        make_phase({"optimizer": options}),
        make_phase({"optimizer": options}),
    )
    good = batches(clean, 4)
    bad = evolve(good[0], targets=torch.full_like(good[0].targets, math.inf))
    expected = train(clean, good, wait=True)
    assert all(
        torch.equal(a, b)
        for a, b in zip(train(dirty, [bad, *good], wait=False), expected, strict=True)
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reading_the_flag_or_not_gives_the_same_bits(
    make_phase: Any, batches: Any, name: str
) -> None:
    """The way for devices computes what the way for the CPU computes."""
    read, kept = (
        make_phase(optimizer=OPTIMIZERS[name]),
        make_phase(optimizer=OPTIMIZERS[name]),
    )
    pairs = zip(
        train(read, batches(read, 8), wait=True),
        train(kept, batches(kept, 8), wait=False),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_overflowing_term_skips_the_step(make_phase: Any, batches: Any) -> None:
    """A loss term that is not finite counts like a loss that is not."""
    ctx = make_phase(terms=[lambda _: lambda step: torch.tensor(math.inf)])
    start = values(ctx)
    assert float(StandardStep(ctx)(batches(ctx, 1), 0).skipped) == 1
    assert all(torch.equal(a, b) for a, b in zip(values(ctx), start, strict=True))


def test_own_gradients_are_used_where_they_agree(make_phase: Any) -> None:
    """Plain LoRA takes the network's hand-derived gradients; dropout, which they do not know, takes autograd."""
    plain = StandardStep(make_phase())
    dropout = StandardStep(make_phase({"adapter": {"type": "lora", "dropout": 0.5}}))
    asked = StandardStep(make_phase({"step": AUTOGRAD}))
    modules = [s.gradient_of.__module__ for s in (plain, dropout, asked)]
    assert modules == [
        "mgk_textmodel.gradients",
        "mgk_sgd.gradients",
        "mgk_sgd.gradients",
    ]


def test_choosing_leaves_the_random_numbers_alone(make_phase: Any) -> None:
    """The comparison with autograd runs dropout, and torch's generator does not notice."""
    ctx = make_phase({"adapter": {"type": "lora", "dropout": 0.5}})
    before = torch.get_rng_state()
    StandardStep(ctx)
    assert torch.equal(before, torch.get_rng_state())


def test_one_tensor_for_two_parameters_is_divided_once() -> None:
    """Autograd may return the same tensor for two parameters; each gets the quotient."""
    shared = torch.tensor([8.0])
    found, _ = divided([shared, shared], torch.tensor(4.0))
    assert [float(g) for g in found] == [2.0, 2.0]


@pytest.mark.parametrize(("own", "looks"), [("auto", 1), ("autograd", 3)])
def test_a_buffer_is_looked_for_once(
    make_phase: Any, monkeypatch: Any, own: str, looks: int
) -> None:
    """Once a step; views of one buffer that come again are not looked at again."""
    ctx = make_phase({"step": {"type": "standard", "gradients": own}})
    seen: list[int] = []
    step = StandardStep(ctx)
    monkeypatch.setattr(
        module, "buffer_of", lambda gradients: (seen.append(1), buffer_of(gradients))[1]
    )
    for number in range(3):
        step([ctx.phase.data.train.batch([0, 1, 2])], number)
    assert len(seen) == looks
