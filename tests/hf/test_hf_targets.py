"""What ``all-linear`` means on models of transformers, and what it reports of the rest."""

import pytest
import torch

import mgk

SIZES = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}  # fmt: skip


@pytest.fixture
def experts():
    """Return a tiny mixture of experts."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        **SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    )
    return Qwen3MoeForCausalLM(config)


def test_experts_that_are_left_out_are_reported_with_the_way_to_them(experts):
    """How many weights and parameters, and targets that reach them; these then leave out nothing."""
    adapter = mgk.attach(experts, "lora", rank=2, targets=["all-linear"])
    assert not [name for name in adapter.targets() if "experts" in name]
    (note,) = adapter.notes
    stacks = [
        p for n, p in experts.named_parameters() if "experts" in n and p.dim() == 3
    ]
    assert f"{sum(p.numel() for p in stacks):,} of" in note
    assert "*.experts.gate_up_proj" in note
    assert "*.experts.down_proj" in note
    mgk.detach(experts, adapter)
    ways = ["all-linear", "*.experts.gate_up_proj", "*.experts.down_proj"]
    if "*.gate.weight" in note:
        ways.append("*.gate.weight")
    whole = mgk.attach(experts, "lora", rank=2, targets=ways)
    assert [name for name in whole.targets() if name.endswith("experts.down_proj")]
    assert whole.notes == ()


def test_a_head_of_two_classes_takes_all_linear():
    """The rank is cut at the head alone; PEFT accepts it too."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=48, num_labels=2)  # fmt: skip
    model = BertForSequenceClassification(config).eval()
    adapter = mgk.attach(model, "lora", rank=8, alpha=16, targets=["all-linear"])
    assert adapter.factors("classifier.weight").a.shape == (2, 32)
    assert adapter.factors("bert.pooler.dense.weight").a.shape == (8, 32)
    (note,) = adapter.notes
    assert "classifier.weight (8 → 2)" in note
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        live = model(ids).logits
        mgk.merge(model, adapter)
        merged = model(ids).logits
    torch.testing.assert_close(merged, live, rtol=1e-5, atol=1e-5)
