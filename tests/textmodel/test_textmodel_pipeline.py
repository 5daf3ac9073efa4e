"""The reference pipeline as it ships: same losses as the reference program, it learns, it forgets."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mgk
from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import GateRefused
from mgk_core.contract.sampling import Order
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_phases.textmodel import PIPELINE
from mgk_textmodel.network import load


def reference_program() -> Any:
    """Load the transcription that stands beside these tests."""
    path = Path(__file__).parents[1] / "reference_program.py"
    spec = importlib.util.spec_from_file_location("reference_program", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_losses(run: Path) -> list[float]:
    """Return the loss of each step that a run logged."""
    lines = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    return [line["loss"] for line in lines if line["event"] == "step"]


def reference_losses(seed: int) -> tuple[list[float], list[torch.Tensor]]:
    """Give the reference program the run's weights, factors and batches; return losses and final weights."""
    hooks = Hooks(load_plugins())
    config = resolve(
        load_tree("textmodel", overrides={"run.seed": seed}), hooks.plugins.registry
    ).config
    bundle = hooks.build_model(config.base, torch.device("cpu"))
    layers = bundle.model.layers
    weights, biases = (
        [m.weight.detach().clone() for m in layers],
        [m.bias.detach().clone() for m in layers],
    )
    program, losses = reference_program(), []
    for index, phase in enumerate(config.phases):
        ctx = PhaseContext(config, phase, index, bundle, torch.device("cpu"), Path())
        torch.manual_seed(ctx.seed)
        adapter = hooks.attach_adapter(bundle.model, phase.adapter, phase.name)
        values = [p.detach().clone() for p in adapter.parameters()]
        adapter.detach()
        train = hooks.load_data(phase.data, bundle).train
        order = Order(len(train), phase.train.batch_size, ctx.seed)
        steps = int(phase.train.epochs) * len(train) // phase.train.batch_size
        batches = [
            (b.inputs, b.targets)
            for b in (train.batch(order.rows(i)) for i in range(steps))
        ]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        losses += program.train_phase(
            weights, biases, pairs, batches, program.LEARNING_RATES[index]
        )
    return losses, weights


def test_the_run_is_the_reference_program(tmp_path: Path) -> None:
    """Each of the 245 losses is that of the plain transcription within 1e-6, and so is the final model."""
    mgk.run(
        "textmodel",
        out=tmp_path / "run",
        set={"defaults.train.log_every": 1, "run.threads": 1},
    )
    found = run_losses(tmp_path / "run")
    expected, weights = reference_losses(seed=0)
    assert len(found) == len(expected) == 3 * 20 + 3 * 20 + 5 * 25
    assert max(abs(a - b) / b for a, b in zip(found, expected, strict=True)) < 1e-6
    merged = load(tmp_path / "run" / "model")
    for layer, weight in zip(merged.layers, weights, strict=True):
        assert (layer.weight - weight).norm() <= 1e-6 * weight.norm()


@pytest.mark.parametrize(
    "seed",
    [
        0,
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
    ],
)
def test_every_phase_learns_and_plain_merging_forgets(
    tmp_path: Path, seed: int
) -> None:
    """Own probe: at least 30 % of the way to its floor. Phase 0's gain: at least 10 % given back at the end."""
    result = mgk.run(
        "textmodel", out=tmp_path / "run", set={"run.seed": seed, "run.threads": 1}
    )
    table = result.retention
    names = [p["name"] for p in table["probes"]]
    assert names == [p.name for p in PIPELINE.phases]
    rows = table["R"]
    for i in range(3):
        before, after, floor = rows[i][i], rows[i + 1][i], 32 * 0.5**2
        assert before - after >= 0.3 * (before - floor)
        assert after > floor
    assert table["gain_kept"]["plain_text"] <= 0.9
    assert table["bwt"] < 0


def test_random_targets_teach_nothing_and_the_gate_says_so(tmp_path: Path) -> None:
    """On the reference's own noise the first phase gains nothing; it is refused and rolled back."""
    overrides = {"phases.plain_text.data.type": "noise", "run.threads": 1}
    with pytest.raises(GateRefused, match="min-gain"):
        mgk.run("textmodel", out=tmp_path / "run", set=overrides)
    journal = (tmp_path / "run" / "journal.jsonl").read_text()
    assert '"rolled_back"' in journal


def test_constants_are_the_references() -> None:
    """Learning rates, epochs, batches, rank, alpha and targets stand as the reference program has them."""
    phases = PIPELINE.phases
    assert [p.name for p in phases] == ["plain_text", "medical_dictionary", "mcq"]
    assert (
        tuple(p.optimizer["lr"] for p in phases) == reference_program().LEARNING_RATES
    )
    sizes = [
        (p.train["epochs"], p.data["size"] // p.train["batch_size"]) for p in phases
    ]
    assert sizes == [(3, 20), (3, 20), (5, 25)]
    adapter = PIPELINE.defaults["adapter"]
    assert (adapter["rank"], adapter["alpha"], adapter["targets"]) == (
        8,
        16,
        ["layer1", "layer2"],
    )
