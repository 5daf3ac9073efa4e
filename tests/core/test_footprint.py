"""What a phase holds in memory at once, seen on a batch."""

import pytest
import torch

from mgk_core.config.resolve import load_tree
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.store import Store
from mgk_core.run.setup import open_session, prepare
from mgk_core.tools.footprint import TRIED, Allocated, activations, peak_of, scoring
from mgk_core.tools.plan import make_plan

KILO = 1024
TINY = (
    "base.id='tiny-gemma'",
    "phases.dictionary.data.generate=0",
    "phases.mcq.data.generate=0",
)


def memory_of(*overrides, pipeline="textmodel"):
    """Return each phase's memory as planned."""
    plan = make_plan(prepare(load_tree(pipeline, None, ["run.threads=1", *overrides])))
    return [phase.memory for phase in plan.phases]


def opened(place, *overrides, pipeline="textmodel"):
    """Return a session that has written nothing."""
    store = Store(place / "none")
    prepared = prepare(load_tree(pipeline, None, ["run.threads=1", *overrides]))
    return open_session(prepared, store, Journal(store), Events())


def test_the_peak_is_of_what_is_held_at_once():
    """Three tensors one after the other take one's bytes, kept ones all of theirs; views and what was there take none."""
    given = torch.zeros(64, KILO)

    def one_by_one():
        for _ in range(3):
            torch.ones(KILO)

    assert peak_of(one_by_one) == 4 * KILO
    assert peak_of(lambda: [torch.ones(KILO) for _ in range(3)]) == 3 * 4 * KILO
    assert peak_of(lambda: (given.view(-1), given.mul_(2), given[3:].t())) == 0
    assert peak_of(lambda: given + 1) == 4 * 64 * KILO


def test_what_is_gone_is_counted_no_more():
    """Also in a backward pass: after it only the gradient is left."""
    x = torch.randn(16, KILO, requires_grad=True)
    with Allocated() as allocated:
        (gradient,) = torch.autograd.grad((x.exp() * 2).sum(), x)
        assert allocated.now >= gradient.nbytes
        assert allocated.peak > allocated.now
        del gradient
    assert allocated.now < x.nbytes


def test_activations_are_those_that_autograd_keeps(tmp_path):
    """Linear in the batch, and at least each GELU's input and each adapted layer's input, in fp32."""
    session = opened(tmp_path)
    ctx = session.context(0)
    ctx.adapter = adapter = session.hooks.attach_adapter(
        session.bundle.model, session.config.phases[0].adapter, "x"
    )
    small, large = (activations(session, ctx, n) for n in (16, 64))
    adapter.detach()
    assert large == pytest.approx(
        4 * small, rel=0.03
    )  # but for the gradients of the parameters
    assert small >= 16 * 4 * (64 + 128 + 128 + 128)


def test_the_largest_part_is_told():
    """Training where the batch is large, else the comparison of merged with live beside the old weights."""
    first, _, last = memory_of("phases.mcq.train.batch_size=300")
    assert "verification" in first
    assert first["old weights"] > 0
    assert "activations" in last
    assert sum(last.values()) > sum(first.values())
    assert memory_of("run.undo='disk'")[0]["old weights"] == 0


def test_statistics_count_where_a_method_keeps_some():
    """The base's are the largest part of the first phase: a whole pass backward over calibration batches."""
    tiny = [*TINY, "defaults.evaluate.limit=2", "base.compute='bfloat16'"]
    guarded = memory_of(*tiny, pipeline="korean-medical")
    free = memory_of(
        *tiny, "defaults.retention.drift-guard=false", pipeline="korean-medical"
    )
    assert "statistics" in guarded[0]
    assert "statistics" not in guarded[2]  # no later phase asks for them
    assert sum(guarded[0].values()) > sum(free[0].values())
    assert not any("statistics" in phase for phase in free)


def test_evaluation_grows_with_what_is_scored_together(tmp_path):
    """More positions in one go take more, in proportion, as far as there are items to fill them."""
    session = opened(
        tmp_path, *TINY, "defaults.evaluate.limit=60", pipeline="korean-medical"
    )
    found = {}
    for session.bundle.budget in (512, 2048, 8192, 100_000):
        found[session.bundle.budget] = scoring(session)
    assert found[2048] > 2 * found[512]
    assert found[8192] > 3 * found[2048]
    assert found[100_000] == found[8192]  # no more than 60 items of a probe
    few = opened(
        tmp_path,
        *TINY,
        "defaults.evaluate.limit=4",
        "base.token_budget=8192",
        pipeline="korean-medical",
    )
    assert scoring(few) < found[2048]


def test_a_base_that_scores_item_by_item_is_asked_for_a_few(tmp_path):
    """No more items are looked at than it takes."""
    session = opened(tmp_path)
    asked = []
    ask = session.hooks.evaluate
    session.hooks.evaluate = lambda ctx, probe: (
        asked.append(len(probe.items)) or ask(ctx, probe)
    )
    assert scoring(session) > 0
    assert set(asked) == {TRIED}
