"""What an exported adapter says of its base."""

import pytest
from torch import nn

from mgk_hf.sharing import adapter_keys, base_of, can_check

transformers = pytest.importorskip("transformers")


def tiny() -> nn.Module:
    """Return a language model that was made in memory."""
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def test_a_base_made_in_memory_is_no_directory(tmp_path, monkeypatch):
    """It has no name, so the working directory is not taken for it, and PEFT cannot load it to compare."""
    monkeypatch.chdir(tmp_path)
    model = tiny()
    assert base_of(model) == ""
    assert adapter_keys(model)["base_model_name_or_path"] is None
    assert not can_check(model)


def test_a_base_from_a_directory_is_named_by_its_whole_path(tmp_path, monkeypatch):
    """The name holds wherever the adapter is loaded from."""
    tiny().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained("base")
    assert base_of(model) == str((tmp_path / "base").resolve())
    assert can_check(model)
