"""PEFT's tuners in mgk's own hands: five lines, a run of three phases, resume and rebuild."""

import json

import pytest
import torch

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import MergeError
from mgk_core.model.digest import base_digest
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.tools.rebuild_model import rebuild

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

X = torch.randn(7, 12, generator=torch.Generator().manual_seed(1))
PHASES = {
    "plain_text": {
        "type": "peft:OFT",
        "options": {"r": 0, "oft_block_size": 8},
        "targets": ["layer1", "layer2"],
    },
    "medical_dictionary": {"type": "peft:ia3", "targets": ["layer*"]},
    "mcq": {
        "type": "peft:LoHa",
        "options": {"r": 3, "alpha": 8},
        "targets": ["layer1", "layer2"],
    },
}


def settings():
    """A small form of the reference pipeline with another of PEFT's tuners in each phase."""
    changes = {"defaults.gate.min-gain": False, "run.threads": 1}
    for name, adapter in PHASES.items():
        changes |= {
            f"phases.{name}.train.steps": 8,
            f"phases.{name}.optimizer": {"type": "adamw", "lr": 5e-3},
            f"phases.{name}.adapter": adapter,
        }
    return changes


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return a finished run of three phases: OFT, IA3, LoHa."""
    pytest.importorskip("peft")
    out = tmp_path_factory.mktemp("peft") / "run"
    run_pipeline("textmodel", out=out, overrides=settings())
    return out


def test_five_lines(mlp, train):
    """Attach, train, merge, roll back: the base again bit for bit, its own modules in their places."""
    model = mlp().eval()
    modules = dict(model.named_modules())
    before = {n: t.clone() for n, t in model.state_dict().items()}
    adapter = mgk.attach(model, "peft:IA3", targets=["up", "down"])
    train(model, adapter, X)
    live = model(X)
    report = mgk.merge(model, adapter)
    assert (model(X) - live).norm() / live.norm() <= 1e-6
    assert not torch.equal(
        model.up.bias, before["up.bias"]
    )  # IA3 scales outputs, and so the bias
    mgk.rollback(model, report)
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_attached_means_that_only_the_adapter_trains(kind, mlp, put_on, train):
    """The base's names, bits and digest stay, disabled() is the base bit for bit, detach leaves nothing behind."""
    model, bare = mlp().eval(), mlp().eval()
    digest, keys = base_digest(model), list(model.state_dict())
    adapter = put_on(model, kind)
    assert list(base_state_dict(model)) == keys
    assert {id(p) for p in model.parameters() if p.requires_grad} == {
        id(p) for p in adapter.parameters()
    }
    first = model(X)
    if adapter.identity == "exact":
        assert torch.equal(first, bare(X))
    elif adapter.identity == "close":
        assert (first - bare(X)).norm() / bare(X).norm() <= 1e-5
    train(model, adapter, X)
    with adapter.disabled():
        assert torch.equal(model(X), bare(X))
        with adapter.disabled():
            pass
        assert torch.equal(model(X), bare(X))
    assert not torch.equal(model(X), bare(X))
    assert base_digest(model) == digest
    for name, target in adapter.targets().items():
        weight = target.parameter.detach().clone()
        state = {k: v.clone() for k, v in adapter.state_dict().items()}
        one = adapter.merged_weight(name, weight)
        assert torch.equal(one, adapter.merged_weight(name, weight))
        assert torch.equal(weight, target.parameter)
        assert all(torch.equal(v, state[k]) for k, v in adapter.state_dict().items())
    mgk.detach(model, adapter)
    assert list(model.state_dict()) == keys
    assert base_digest(model) == digest
    assert not hasattr(model, "peft_config")
    assert torch.equal(model(X), bare(X))


def test_identity_is_what_was_measured(mlp, put_on):
    """Zero deltas are exact, rotations and scalings by one are close, a random start promises nothing."""
    found = {
        k: put_on(mlp().eval(), k).identity
        for k in ("LORA", "LOHA", "VERA", "OFT", "IA3", "HRA", "FOURIERFT")
    }
    assert found == {
        "LORA": "exact", "LOHA": "exact", "VERA": "exact", "OFT": "close", "IA3": "close", "HRA": "close",
        "FOURIERFT": "none",
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=str)
def test_a_merge_that_is_not_finite_changes_nothing(value, mlp, put_on, train):
    """One bad number in the second layer: refused, and the first layer is untouched too."""
    model = mlp().eval()
    adapter = put_on(model, "LOHA")
    train(model, adapter, X)
    with torch.no_grad():
        adapter.parameters()[-1].view(-1)[0] = value
    digest = base_digest(model)
    with pytest.raises(MergeError):
        mgk.merge(model, adapter)
    assert base_digest(model) == digest


def test_three_phases_are_merged_and_recorded(finished):
    """Each phase is committed, its delta is not zero, and PEFT's files lie in its folder."""
    ledger = json.loads((finished / "ledger.json").read_text())
    assert [p["result"] for p in ledger["phases"]] == ["committed"] * 3
    assert len({ledger["base"], *(p["merged"] for p in ledger["phases"])}) == 4
    for folder, kind in zip(
        sorted((finished / "phases").iterdir()), ("OFT", "IA3", "LOHA"), strict=True
    ):
        config = json.loads((folder / "adapter/adapter_config.json").read_text())
        assert config["peft_type"] == kind
        assert (folder / "adapter/adapter_model.safetensors").exists()
    assert not list(finished.rglob("*.bin")) + list(finished.rglob("*.pt"))


def test_a_rebuilt_run_has_the_ledgers_digest(finished, tmp_path):
    """From base and adapters alone, after every phase, the same bits as the run had."""
    for i, name in enumerate(PHASES):
        made = rebuild(finished, tmp_path / name, until=name)
        assert (
            made.weights
            == made.recorded
            == json.loads((finished / "ledger.json").read_text())["phases"][i]["merged"]
        )


def test_a_run_that_was_stopped_ends_in_the_same_bits(finished, tmp_path):
    """Stopped after the first phase and resumed: the digests of the run that was never stopped."""
    out = tmp_path / "run"
    run_pipeline("textmodel", out=out, overrides=settings(), until="plain_text")
    resume_run(out)
    theirs, mine = (
        json.loads((p / "ledger.json").read_text()) for p in (finished, out)
    )
    assert [p["merged"] for p in mine["phases"]] == [
        p["merged"] for p in theirs["phases"]
    ]
    assert [p["adapter"] for p in mine["phases"]] == [
        p["adapter"] for p in theirs["phases"]
    ]
