"""Merge rules and transforms that only say what becomes of a delta."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from attrs import evolve, frozen

import mgk
from mgk_core.contract.adapter import base_state_dict, state_of
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import ByDelta, Proposal
from mgk_core.contract.specs import DeltaSpec, option
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.testing.history import shake
from mgk_core.testing.reference import attach_dense
from mgk_core.testing.zoo import make
from mgk_core.tools.scaffold import write_plugin


@frozen(kw_only=True)
class TopSpec(DeltaSpec):
    """Keep the largest entries of each delta; which they are depends on all of its rows."""

    keep: float = option(0.5, help="share of entries that are kept")

    def change(self, name, delta):
        least = delta.abs().flatten().quantile(1 - self.keep)
        return torch.where(delta.abs() >= least, delta, 0.0)


@frozen(kw_only=True)
class BadSpec(DeltaSpec):
    """Make NaN of a delta."""

    def change(self, name, delta):
        return delta * float("nan")


@frozen(kw_only=True)
class ThinSpec(DeltaSpec):
    """Drop entries by a generator."""

    seed: int = 0

    def change(self, name, delta):
        return (
            delta
            * torch.rand(delta.shape, generator=self.generator(name, self.seed)).round()
        )


class Plugin:
    """Registers rules and transforms, and implements no hook besides."""

    @mgk.hookimpl
    def mgk_register_specs(self, registry):
        for slot in ("merge", "transform"):
            registry.add(slot, "top", TopSpec)
            registry.add(slot, "bad", BadSpec)
            registry.add(slot, "thin", ThinSpec)


@pytest.fixture(scope="module")
def hooks():
    return Hooks(load_plugins(extra=[("changing", Plugin())]))


def ready(dtype=torch.float32, kind="linear"):
    case = make(kind, layers=2, seed=4, dtype=dtype)
    adapter = attach_dense(case.model)
    shake(adapter)
    return case, adapter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "conv2d", "embedding"])
def test_a_rule_merges_what_it_makes_of_each_delta(hooks, dtype, kind):
    """W' + residual is W + change(Δ), with Δ as (out, in); the report is not called exact."""
    case, adapter = ready(dtype, kind)
    before = {
        n: t.detach().double().clone() for n, t in base_state_dict(case.model).items()
    }
    spec = hooks.spec("merge", {"type": "top", "keep": 0.25})
    report = hooks.merge(case.model, adapter, Proposal(), spec)
    assert (report.rule, report.exact) == ("top", False)
    residuals = state_of(case.model).residuals
    for name, target in adapter.targets().items():
        delta = adapter.parts[name].delta.detach()
        flat = spec.change(name, delta.flatten(1)).reshape(delta.shape).double()
        total = (
            target.parameter.detach().double()
            + residuals.get(name, torch.zeros(())).double()
        )
        # the fp32 sum of weight and delta is rounded once
        bound = 2.0**-23 * float(before[name].abs().max() + delta.abs().max())
        assert (total - before[name] - flat).abs().max() <= bound
    report.undo.restore()
    now = base_state_dict(case.model)
    assert all(torch.equal(now[n].double(), t) for n, t in before.items())


def test_a_transform_in_front_of_the_exact_rule_is_the_same(hooks):
    """Slot `transform` and slot `merge` end in the same bits."""
    spec, results = hooks.spec("merge", {"type": "top"}), []
    for rule, proposal in (
        (spec, Proposal()),
        (None, Proposal(transforms=(ByDelta(spec),))),
    ):
        case, adapter = ready()
        hooks.merge(
            case.model,
            adapter,
            proposal,
            rule or hooks.spec("merge", {"type": "exact"}),
        )
        results.append(base_state_dict(case.model))
    assert all(torch.equal(t, results[1][n]) for n, t in results[0].items())


def test_what_is_not_finite_is_refused_by_name(hooks):
    """The transform is named, not the adapter, and nothing has changed."""
    case, adapter = ready()
    before = {n: t.detach().clone() for n, t in base_state_dict(case.model).items()}
    with pytest.raises(MergeError, match="transform 'bad"):
        hooks.merge(
            case.model, adapter, Proposal(), hooks.spec("merge", {"type": "bad"})
        )
    assert all(
        torch.equal(t, before[n]) for n, t in base_state_dict(case.model).items()
    )


def test_the_generator_depends_on_seed_and_weight_alone(hooks):
    """Twice the same, another for another weight or seed; the ledger's name has every option."""
    spec, delta = hooks.spec("transform", {"type": "thin", "seed": 3}), torch.ones(6, 7)
    one = spec.change("a", delta)
    assert torch.equal(one, spec.change("a", delta))
    assert not torch.equal(one, spec.change("b", delta))
    assert not torch.equal(one, evolve(spec, seed=4).change("a", delta))
    assert ByDelta(spec).name == "thin(seed=3)"


@pytest.mark.slow
def test_a_run_with_both_is_rebuilt_to_the_same_bits(tmp_path):
    """A random transform, then a merge rule of its own: `mgk rebuild` compares digests with the ledger."""
    for kind in ("transform", "merge-rule"):
        write_plugin(kind, f"my-{kind}", tmp_path / kind)
    directories = f"{tmp_path / 'transform'}{os.pathsep}{tmp_path / 'merge-rule'}"
    environment = {**os.environ, "MGK_PLUGIN_DIRS": directories, "OMP_NUM_THREADS": "1"}
    settings = [
        "defaults.transform.my-transform.drop=0.3",
        "defaults.merge.type=my-merge-rule",
    ]
    settings.append("defaults.gate.min-gain=false")
    run = ["run", "textmodel", "--out", "run", "--quiet", "--until", "plain_text"]
    for setting in settings:
        run += ["--set", setting]
    for arguments in (
        run,
        ["rebuild", "run", "--out", "model"],
        ["verify", "run", "--weights"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "mgk_cli", *arguments], cwd=tmp_path, env=environment,
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    (phase,) = json.loads((tmp_path / "run/ledger.json").read_text())["phases"]
    assert phase["transforms"] == ["my-transform(drop=0.3, seed=0)"]
    assert (phase["rule"], phase["exact"]) == ("my-merge-rule", False)
