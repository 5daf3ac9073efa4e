"""A phase without a run directory: the same weights, rows and reports as in one."""

import attrs
import pytest
import torch

import mgk
from mgk_core.contract.errors import ConfigError, InputError, MgkError
from mgk_core.model.digest import base_digest
from mgk_core.run.runner import run_pipeline

PHASE = {
    "adapter": {"type": "lora", "rank": 8, "targets": ["layer1", "layer3"]},
    "optimizer": {"type": "adamw", "lr": 4e-3},
    "train": {"steps": 12},
}
PROBES = {"size": 64, "items": 24}


@pytest.fixture
def bundle():
    return mgk.load_base("reference", device="cpu")


def first(bundle, **options):
    return mgk.load_data(bundle, "teacher", seed=1, **PROBES, **options)


def second(bundle):
    return mgk.load_data(bundle, "teacher", seed=2, **PROBES)


def test_phases_in_memory_come_to_the_weights_of_a_run(tmp_path):
    """The same phases, once in a run directory and once in memory, end in equal digests and rows."""
    whole = run_pipeline(
        "textmodel",
        out=tmp_path / "run",
        overrides=[
            "defaults.train.steps=8",
            "defaults.gate.min-gain=false",
            "run.threads=1",
        ],
    )
    config = mgk.resolve(
        "textmodel", set=["defaults.train.steps=8", "defaults.gate.min-gain=false"]
    )
    from mgk_core.host.hooks import installed_hooks

    hooks = installed_hooks()
    bundle = hooks.build_model(config.base, torch.device("cpu"))
    parts = [hooks.load_data(p.data, bundle) for p in config.phases]
    after = None
    for number, (phase, data) in enumerate(zip(config.phases, parts, strict=True)):
        later = config.phases[number + 1 :]
        after = mgk.run_phase(
            bundle, data, phase, after=after, then=later, seed=config.run.seed
        )
        entry = whole.ledger.phases[number]
        assert (after.entry.base, after.entry.merged) == (entry.base, entry.merged)
        assert after.entry.adapter == entry.adapter
    assert base_digest(bundle.model) == whole.ledger.head


def test_a_phase_trains_merges_and_tells(bundle):
    """Outcome, row, adapter and matrix are in the result; events go to the sink; nothing is written."""
    seen = []
    before = base_digest(bundle.model)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    one = mgk.run_phase(bundle, first(bundle), PHASE, sink=seen.append, then=[PHASE])
    assert torch.equal(
        torch.rand(1), expected
    )  # the caller's random numbers are left alone
    assert one.outcome.result == "committed"
    assert one.entry.base == before != one.entry.merged == base_digest(bundle.model)
    assert {"step", "evaluation", "merge", "verify"} <= {e["event"] for e in seen}
    two = mgk.run_phase(bundle, second(bundle), PHASE, after=one)
    assert two.entry.base == one.entry.merged
    assert [row["name"] for row in two.retention["rows"]] == [
        "base",
        "phase_1",
        "phase_2",
    ]
    matrix = two.retention["R"]
    assert (
        matrix[1][0] < matrix[0][0]
    )  # the first probe's squared error fell in its phase
    assert one.adapter.keys() == two.adapter.keys()


def test_a_refused_phase_leaves_the_model_as_it_was(bundle):
    """A refusal is a result like any other; the weights are the old ones."""
    before = base_digest(bundle.model)
    gated = PHASE | {"gate": {"min-gain": {"to_floor": 1.0}}}
    refused = mgk.run_phase(bundle, first(bundle), gated)
    assert refused.outcome.result == "rolled_back"
    assert refused.outcome.refusals
    assert base_digest(bundle.model) == before == refused.entry.merged


def test_retention_methods_see_the_base_and_the_phases_before(bundle):
    """Statistics of the calibration batches and of the first phase reach the second."""
    data = first(bundle)
    batches = tuple(data.train.batch(range(i, i + 16)) for i in range(0, 64, 16))
    data = attrs.evolve(data, calibration=batches)
    kept = PHASE | {"retention": {"covariance-merge": {}}}
    one = mgk.run_phase(bundle, data, kept, then=[kept])
    assert one.statistics
    own = sum(t.nbytes for t in one.statistics.values())
    assert one.kept_bytes > own  # the base's are counted too
    two = mgk.run_phase(bundle, second(bundle), kept, after=one)
    assert two.entry.transforms


def test_what_is_wrong_is_said_before_anything_is_trained(bundle):
    """Unknown tables and keys, a name twice, a result that is not the last: refused, nothing changed."""
    before = base_digest(bundle.model)
    with pytest.raises(ConfigError, match="unknown table"):
        mgk.run_phase(bundle, first(bundle), PHASE | {"optimiser": {}})
    with pytest.raises(ConfigError, match=r"train.*unknown key"):
        mgk.run_phase(bundle, first(bundle), PHASE | {"train": {"stepz": 3}})
    assert base_digest(bundle.model) == before
    one = mgk.run_phase(bundle, first(bundle), PHASE, name="one")
    with pytest.raises(InputError, match="a phase 'one' already"):
        mgk.run_phase(bundle, second(bundle), PHASE, name="one", after=one)
    two = mgk.run_phase(bundle, second(bundle), PHASE, after=one)
    with pytest.raises(InputError, match="not the last"):
        mgk.run_phase(bundle, second(bundle), PHASE, after=one)
    assert two.name == "phase_2"


def test_a_phase_that_fails_can_be_run_again(bundle):
    """An error leaves neither the adapter nor the phase behind."""
    data = first(bundle)
    broken = PHASE | {"optimizer": {"type": "adamw", "lr": 1e30}}
    with pytest.raises(MgkError):
        mgk.run_phase(bundle, data, broken)
    assert mgk.run_phase(bundle, data, PHASE).outcome.result == "committed"


def test_what_is_no_model_is_refused_by_name():
    """A string, or a bundle where its model was meant, is an input error that says what to give."""
    with pytest.raises(InputError, match=r"torch\.nn\.Module.*got str"):
        mgk.attach("gemma")
    with pytest.raises(InputError, match=r"give its \.model"):
        mgk.attach(mgk.load_base("reference"))
