"""A chain of phases as one adapter: the same outputs on the original base, in PEFT too."""

import pytest
import torch

from mgk_core.contract.errors import InputError
from mgk_core.contract.files import read_tensors
from mgk_core.run.reopen import reopen
from mgk_core.run.runner import run_pipeline
from mgk_core.tools.export import _no_larger, export_adapter


@pytest.fixture(scope="module")
def exported(finished_run, tmp_path_factory):
    """Return the finished run's phases as one adapter."""
    return export_adapter(finished_run, tmp_path_factory.mktemp("export") / "adapter")


def test_base_and_adapter_give_the_runs_outputs(exported):
    """Within what rounding explains, over three phases of rank 8 each."""
    assert exported.verification.ok
    assert exported.verification.error <= 1e-6
    assert exported.ranks == (24, 24)
    assert exported.phases == ("plain_text", "medical_dictionary", "mcq")


def test_peft_loads_it_onto_the_base(exported, finished_run):
    """PEFT's own loader, the bare base, new inputs: the final model's outputs."""
    peft = pytest.importorskip("peft")
    session = reopen(finished_run)
    config = peft.LoraConfig.from_pretrained(str(exported.directory))
    model = peft.PeftModel(session.bundle.model, config)
    state = read_tensors(exported.directory / "adapter_model.safetensors")
    peft.set_peft_model_state_dict(model, state)
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found = model.eval()(x)
    final = reopen(finished_run).bundle.model
    final.load_state_dict(read_tensors(finished_run / "model/model.safetensors"))
    with torch.no_grad():
        expected = final(x)
    assert (
        found - expected
    ).norm() / expected.norm() <= 2e-6  # fp32: three merges against one product


def test_a_rank_above_the_weights_side_becomes_the_product():
    """Factors of rank 7 for a 3 × 5 weight: the same product, rank 3, on either side."""
    generator = torch.Generator().manual_seed(0)
    for out, inside in ((3, 5), (5, 3)):
        a, b = (
            torch.randn(7, inside, generator=generator),
            torch.randn(out, 7, generator=generator),
        )
        small_a, small_b = _no_larger(a, b)
        assert small_a.shape == (3, inside)
        assert small_b.shape == (out, 3)
        torch.testing.assert_close(small_b @ small_a, (b.double() @ a.double()).float())


def test_phases_that_adapt_other_weights_stack_by_weight(tmp_path):
    """One phase on layer 1 and 2, the next on layer 2 and 3, PiSSA among them: each weight has its own rank."""
    out = tmp_path / "run"
    run_pipeline(
        "textmodel", out=out, until="medical_dictionary",
        overrides=[
            "run.threads=1", "phases.plain_text.adapter.init='pissa'", "phases.plain_text.adapter.rank=3",
            "phases.medical_dictionary.adapter.targets=['layer2', 'layer3']", "phases.medical_dictionary.adapter.alpha=5",
            "phases.plain_text.gate.min-gain=false", "phases.medical_dictionary.gate.min-gain=false",
        ],
    )  # fmt: skip
    made = export_adapter(out, tmp_path / "adapter")
    assert made.ranks == (6, 14)  # PiSSA counts twice
    assert made.verification.ok


def test_what_is_not_additive_is_refused(tmp_path):
    """DoRA changes norms: no single adapter holds it; nothing is left behind."""
    out = tmp_path / "run"
    run_pipeline(
        "textmodel", out=out, until="plain_text",
        overrides=["run.threads=1", "defaults.adapter.type='dora'", "defaults.adapter.targets=['layer1']"],
    )  # fmt: skip
    with pytest.raises(InputError, match="not an additive low-rank delta"):
        export_adapter(out, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()
