"""Rates and decay by parameter: which pattern means what, and what is refused before training."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.errors import ConfigError, EnvironmentFault, InputError
from mgk_core.run.runner import run_pipeline
from mgk_sgd import optimizers
from mgk_sgd.groups import Rates, matches, parameter_names
from mgk_sgd.optimizers import make_optimizer
from mgk_sgd.step import StandardStep


def rates_of(ctx: Any) -> dict[str, Rates]:
    """Return each parameter's rates by its name."""
    adapter = ctx.phase.adapter
    names = dict(
        zip(map(id, adapter.parameters()), parameter_names(adapter), strict=True)
    )
    return {
        names[id(p)]: Rates(group["lr"], group["weight_decay"])
        for group in ctx.phase.optimizer.param_groups
        for p in group["params"]
    }


def test_without_patterns_there_is_one_group(make_phase: Any) -> None:
    """As before there were patterns, so that older checkpoints fit."""
    groups = make_phase({"optimizer": {"type": "adamw"}}).phase.optimizer.param_groups
    assert len(groups) == 1


def test_lr_ratio_is_the_rate_of_every_b(make_phase: Any) -> None:
    """LoRA+: lr for A, lr · lr_ratio for B, for each weight."""
    table = {"type": "adamw", "lr": 1e-3, "lr_ratio": 16.0, "weight_decay": 0.1}
    found = rates_of(make_phase({"optimizer": table}))
    assert len(found) == 4
    for name, rates in found.items():
        assert rates == Rates(16e-3 if name.endswith("/b") else 1e-3, 0.1)


def test_the_first_pattern_that_matches_counts(make_phase: Any) -> None:
    """A key that a pattern leaves out keeps the table's own value, and lr_ratio."""
    table = {
        "type": "sgd", "lr": 1e-3, "lr_ratio": 2.0, "weight_decay": 0.1,
        "groups": {"layer1.weight/b": {"weight_decay": 0.0}, "lora_B": {"lr": 0.5}},
    }  # fmt: skip
    found = rates_of(make_phase({"optimizer": table}))
    assert found["layer1.weight/b"] == Rates(2e-3, 0.0)
    assert found["layer1.weight/a"] == Rates(1e-3, 0.1)
    assert found["layer2.weight/b"] == Rates(0.5, 0.1)


def test_each_group_is_stepped_at_its_rate(make_phase: Any, batches: Any) -> None:
    """One step of SGD is p ← p − lr · factor · g, with each parameter's own lr, in warm-up too."""
    table = {"type": "sgd", "lr": 1e-2, "lr_ratio": 8.0, "warmup_steps": 2}
    ctx, plain = (
        make_phase({"optimizer": t}) for t in (table, {"type": "sgd", "lr": 1.0})
    )
    gradients = []
    for each in (ctx, plain):
        before = [p.detach().clone() for p in each.phase.adapter.parameters()]
        StandardStep(each)(batches(each, 1), 0)
        after = each.phase.adapter.parameters()
        gradients.append([b - a for a, b in zip(after, before, strict=True)])
    for name, (moved, gradient) in zip(
        parameter_names(ctx.phase.adapter), zip(*gradients, strict=True), strict=True
    ):
        lr = (0.08 if name.endswith("/b") else 0.01) / 2
        # Each difference of two parameters near 1 rounds at 6e-8.
        torch.testing.assert_close(moved, lr * gradient, rtol=1e-4, atol=2e-7)


def test_a_pattern_that_matches_nothing_is_refused_with_the_names(
    make_phase: Any,
) -> None:
    """A misspelt pattern would train at another rate in silence."""
    table = {"type": "adamw", "groups": {"*.lora_C": {"lr": 0.1}}}
    with pytest.raises(InputError, match=r"lora_C.*weight/a.*weight/b"):
        make_phase({"optimizer": table})


def test_lr_ratio_without_a_b_is_refused_with_the_names(make_phase: Any) -> None:
    """It would have no effect on an adapter of another kind."""
    ctx = make_phase({"optimizer": {"type": "adamw"}}).phase
    state = {f"{k}_": v for k, v in ctx.adapter.state_dict().items()}
    ctx.adapter.state_dict = lambda: state
    spec = attrs.evolve(ctx.phase.optimizer, lr_ratio=2.0)
    with pytest.raises(InputError, match=r"no B .*weight/a_"):
        make_optimizer(ctx.adapter, spec)


def test_an_adapter_whose_state_is_copied_has_no_names(make_phase: Any) -> None:
    """Its parameters cannot be told apart; without patterns it trains as any other."""
    ctx = make_phase({"optimizer": {"type": "adamw"}}).phase
    state = {k: v.clone() for k, v in ctx.adapter.state_dict().items()}
    ctx.adapter.state_dict = lambda: state
    make_optimizer(ctx.adapter, ctx.phase.optimizer)
    with pytest.raises(InputError, match="copies of its parameters"):
        make_optimizer(ctx.adapter, attrs.evolve(ctx.phase.optimizer, lr_ratio=2.0))


def test_a_run_refuses_it_before_the_baseline(tmp_path: Any) -> None:
    """The last phase's pattern is an error before anything is measured, and names its key."""
    groups = {"phases.mcq.optimizer.groups": {"*nothing*": {"lr": 0.1}}}
    events: list[str] = []
    with pytest.raises(ConfigError) as caught:
        run_pipeline(
            "textmodel", out=tmp_path / "run", overrides=groups,
            sink=lambda e: events.append(e["event"]),
        )  # fmt: skip
    (problem,) = caught.value.problems
    assert problem.where == "phases.mcq.optimizer"
    assert "*nothing*" in problem.message
    assert "evaluation" not in events
    assert not (tmp_path / "run").exists()


def test_a_missing_library_is_an_error_before_the_baseline(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the extra to install."""
    monkeypatch.setattr(optimizers, "find_spec", lambda _: None)
    for type_ in ("adamw-8bit", "adamw-schedule-free"):
        with pytest.raises(EnvironmentFault, match=r"pip install 'mgk\[optimizers\]'"):
            run_pipeline(
                "textmodel", out=tmp_path / type_,
                overrides={"phases.mcq.optimizer": {"type": type_}},
            )  # fmt: skip
        assert not (tmp_path / type_).exists()


NAME = "model.layers.0.self_attn.q_proj.weight/b"


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        (NAME, True), ("b", True), ("lora_B", True), ("*.lora_B", True), ("*q_proj*", True),
        ("*/b", True), ("q_proj.lora_B", True), ("a", False), ("lora_A", False), ("q_proj", False),
        ("*.layers.1.*", False), ("_B", False),
    ],
)  # fmt: skip
def test_what_patterns_mean(pattern: str, meant: bool) -> None:
    """Globs on the whole name, the last part, and PEFT's names for the same."""
    assert matches(pattern, NAME) is meant


@given(st.text("abc./_*", min_size=1, max_size=12))
def test_a_name_matches_itself_and_its_last_part(text: str) -> None:
    """For any name without signs of a glob."""
    name = text.replace("*", "x")
    assert matches(name, name)
    assert matches(name, f"model/{name}")
