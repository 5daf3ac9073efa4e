"""``adapter.tied = "untie"`` in a pipeline: trained, merged, saved untied, resumed and verified."""

import pytest
import torch

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.files import read_json
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.tools.export import export_adapter
from mgk_core.tools.verify_run import audit, audit_weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"


def assert_verified(run):
    """Rebuild the run's weights and compare them, and model/, with the ledger."""
    found = audit(run)
    audit_weights(found)
    assert not [finding for finding in found.findings if not finding.harmless]


@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("gemma3", ["lm_head"]),
        pytest.param("gemma3", ["embed_tokens", "q_proj"], marks=pytest.mark.slow),
        pytest.param("gemma3-multimodal", ["lm_head"], marks=pytest.mark.slow),
        pytest.param("gpt2", ["lm_head"], marks=pytest.mark.slow),
    ],
)
def test_one_end_is_trained_and_the_result_is_untied(family, targets, saved, run_on):
    """Both ends are saved, the other one as it was, and transformers loads them apart."""
    from transformers import AutoModelForCausalLM

    base = saved(family)
    untied = {"defaults.adapter.targets": targets, "defaults.adapter.tied": "untie"}
    run = run_on(base, **untied)
    ledger = read_json(run / "ledger.json")
    assert ledger["phases"][0]["merged"] != ledger["base"]
    assert_verified(run)
    found, info = AutoModelForCausalLM.from_pretrained(
        run / "model", output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not found.config.get_text_config().tie_word_embeddings
    before = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    ends = found.get_input_embeddings().weight, found.get_output_embeddings().weight
    moved = [not torch.equal(end, before) for end in ends]
    assert moved == [targets != ["lm_head"], targets == ["lm_head"]]


def test_an_untied_run_is_resumed_to_the_same_weights(saved, run_on, tmp_path):
    """After the phase that unties, from a checkpoint, and for a second phase on both ends."""
    phases = {
        "defaults.adapter.targets": ["lm_head"],
        "defaults.adapter.tied": "untie",
        "phases.two.data.type": "text",
        "phases.two.data.length": 24,
        "phases.two.adapter.targets": ["lm_head", "embed_tokens"],
    }
    base = saved("gemma3")
    lessons = str(tmp_path / "lessons.jsonl")
    phases |= {"phases.two.data.train": lessons, "phases.two.data.probe": "second"}
    whole = run_on(base, **phases)
    given = {
        "base.id": base,
        "phases.one.data.train": lessons,
        "phases.one.data.test": lessons,
    }
    run_pipeline(
        None, out=tmp_path / "parts", config=tmp_path / "one.toml",
        overrides={**given, **phases}, until="one",
    )  # fmt: skip
    resume_run(tmp_path / "parts")
    merged = [
        [entry["merged"] for entry in read_json(run / "ledger.json")["phases"]]
        for run in (whole, tmp_path / "parts")
    ]
    assert merged[0] == merged[1]
    assert_verified(whole)


def test_a_model_counts_as_tied_until_a_merge(saved):
    """Its digest is that of the tied base whichever end was untied, and again after a rollback."""
    import mgk
    from mgk_core.model.digest import base_digest
    from mgk_hf.loading import build
    from mgk_hf.specs import HfSpec

    bundle = build(HfSpec(type="hf", id=saved("gemma3")), torch.device("cpu"))
    model = bundle.model
    digest, names = base_digest(model), list(base_state_dict(model))
    for target in ("lm_head", "embed_tokens"):
        adapter = mgk.attach(model, "lora", rank=2, targets=[target], tied="untie")
        assert base_digest(model) == digest
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        report = mgk.merge(model, adapter)
        assert base_digest(model) != digest
        assert set(base_state_dict(model)) == {*names, HEAD, TABLE}
        mgk.rollback(model, report)
        assert base_digest(model) == digest
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert model.config.tie_word_embeddings


def test_the_head_alone_is_exported_for_the_tied_base(saved, run_on, tmp_path):
    """PEFT puts the delta on the head's output, so the tied base needs no untying."""
    pytest.importorskip("peft")
    untied = {"defaults.adapter.targets": ["lm_head"], "defaults.adapter.tied": "untie"}
    made = export_adapter(run_on(saved("gemma3"), **untied), tmp_path / "adapter")
    assert made.outside
    assert made.verification.ok
