"""Models built again from a run's record, against the arithmetic of their deltas."""

import pytest
import torch

from mgk_core.contract.errors import InputError
from mgk_core.contract.files import read_tensors
from mgk_core.record.ledger import read_ledger
from mgk_core.tools.rebuild_model import rebuild


def weights(directory):
    return read_tensors(directory / "model.safetensors")


def deltas(run, phase):
    """Return scale · B A of each weight of a phase, in float64, from the adapter's file alone."""
    folder = next((run / "phases").glob(f"*-{phase}"))
    state = read_tensors(folder / "adapter/state.safetensors")
    names = {k.rpartition("/")[0] for k in state}
    return {
        n: (16 / 8) * state[f"{n}/b"].double() @ state[f"{n}/a"].double() for n in names
    }


@pytest.fixture(scope="module")
def base(finished_run, tmp_path_factory):
    """Return the untouched base: the run rebuilt with every phase left out."""
    out = tmp_path_factory.mktemp("base") / "model"
    made = rebuild(
        finished_run, out, leave_out=["plain_text", "medical_dictionary", "mcq"]
    )
    assert made.weights == read_ledger(finished_run).base
    assert (
        made.recorded == made.weights
    )  # the ledger knows it, as what the run began with
    return weights(out)


@pytest.mark.parametrize("until", ["plain_text", "medical_dictionary", "mcq", None])
def test_every_prefix_is_what_the_ledger_says(finished_run, tmp_path, until):
    """Bit-identical: the digests are equal."""
    made = rebuild(finished_run, tmp_path / "m", until=until)
    entry = read_ledger(finished_run).entry(until or "mcq")
    assert made.weights == made.recorded == entry.merged


@pytest.mark.parametrize(
    ("scales", "leave_out"),
    [({"mcq": 0.5}, []), ({}, ["plain_text"]), ({"plain_text": -1.0}, ["mcq"])],
)
def test_scaled_phases_add_up(finished_run, tmp_path, base, scales, leave_out):
    """W = base + Σ factor · scale · B A, within fp32's rounding of three sums."""
    made = rebuild(finished_run, tmp_path / "m", scales=scales, leave_out=leave_out)
    assert made.recorded is None
    found = weights(tmp_path / "m")
    factors = (
        {"plain_text": 1.0, "medical_dictionary": 1.0, "mcq": 1.0}
        | scales
        | dict.fromkeys(leave_out, 0.0)
    )
    for name, start in base.items():
        expected = start.double()
        for phase, factor in factors.items():
            expected = expected + factor * deltas(finished_run, phase).get(
                name, torch.zeros(()).double()
            )
        # three roundings of the sum, and a product over rank 8 each
        bound = (3 + 3 * 8) * torch.finfo(torch.float32).eps * expected.abs().max()
        assert (found[name].double() - expected).abs().max() <= bound, name


def test_leaving_the_last_phase_out_is_a_prefix(finished_run, tmp_path):
    """It is said to be the state that the ledger has; a phase behind the prefix is said to be out of it."""
    made = rebuild(finished_run, tmp_path / "m", leave_out=["mcq"])
    assert (
        made.recorded
        == made.weights
        == read_ledger(finished_run).entry("medical_dictionary").merged
    )
    with pytest.raises(InputError, match="mcq: comes after"):
        rebuild(finished_run, tmp_path / "n", until="plain_text", leave_out=["mcq"])


def test_a_phase_that_was_never_merged_cannot_be_scaled(half_run, tmp_path):
    """Says so, and makes nothing."""
    with pytest.raises(InputError, match="no such phase in what is rebuilt"):
        rebuild(half_run, tmp_path / "m", scales={"mcq": 0.5})
    assert not (tmp_path / "m").exists()


def test_the_run_is_not_touched(finished_run, tmp_path):
    """Nothing in the run directory changes, times included."""
    before = {
        p: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished_run.rglob("*")
    }
    rebuild(finished_run, tmp_path / "m", until="plain_text")
    assert {
        p: (p.stat().st_mtime_ns, p.stat().st_size) for p in finished_run.rglob("*")
    } == before
