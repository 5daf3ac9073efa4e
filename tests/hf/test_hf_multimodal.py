"""Multimodal bases: adapters, merging and export touch the language model only."""

import json

import pytest
import torch

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError, PluginError
from mgk_core.contract.files import read_tensors
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.testing.reference import attach_dense
from mgk_core.tools.export import export_adapter
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_hf.tiny import tiny_config

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")
VOCABULARY = 320
TEXT = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0,
        "eos_token_id": 1, "bos_token_id": 2, "max_position_embeddings": 512}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}  # fmt: skip
QWEN_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "intermediate_size": 32,
               "out_hidden_size": 64}  # fmt: skip
QWEN_TOKENS = {"image_token_id": 310, "video_token_id": 311, "vision_start_token_id": 312,
               "vision_end_token_id": 313}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
TWO_KINDS = {
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 32,
}
LINEAR_ATTENTION = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
                    "linear_num_value_heads": 2, "linear_key_head_dim": 16,
                    "linear_value_head_dim": 16}  # fmt: skip
GEMMA3N_VISION = {"hidden_size": 32, "vocab_size": 8, "vocab_offset": 304}
GEMMA3N_AUDIO = {"hidden_size": 32, "conf_num_attention_heads": 2, "conf_num_hidden_layers": 1,
                 "vocab_size": 8, "vocab_offset": 312, "input_feat_size": 16,
                 "sscp_conv_channel_size": [8, 4]}  # fmt: skip
LLAMA4_VISION = {**VISION, "intermediate_size": 128, "vision_output_dim": 32,
                 "projector_input_dim": 32, "projector_output_dim": 32}  # fmt: skip


def text(kind, **more):
    """Return a text configuration of another family inside a multimodal one."""
    return {"model_type": kind, **TEXT, **more}


FAMILIES = {
    "Gemma3": {
        "text_config": tiny_config(VOCABULARY).to_dict(),
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "Gemma3n": {
        "text_config": {**TEXT, **TWO_KINDS, "hidden_size_per_layer_input": 16, "laurel_rank": 8,
                        "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 0,
                        "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0],
                        "intermediate_size": [96, 96]},
        "vision_config": GEMMA3N_VISION,
        "audio_config": GEMMA3N_AUDIO,
    },
    "Gemma4": {
        "text_config": {**TEXT, **TWO_KINDS, "hidden_size_per_layer_input": 16,
                        "vocab_size_per_layer_input": VOCABULARY, "global_head_dim": 16,
                        "num_kv_shared_layers": 0},
        "vision_config": {**VISION, "num_key_value_heads": 2, "head_dim": 16,
                          "position_embedding_size": 64},
        "audio_config": None,
    },
    "Qwen2VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2,
                          "patch_size": 14, "mlp_ratio": 2},
        **QWEN_TOKENS,
    },
    "Qwen2_5_VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_VISION, "fullatt_block_indexes": [0]},
        **QWEN_TOKENS,
    },
    "Qwen3VL": {
        "text_config": {**TEXT, "rope_parameters": MROPE},
        "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0],
                          "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "Qwen3_5": {
        "text_config": {**TEXT, **LINEAR_ATTENTION,
                        "rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}},
        "vision_config": {**QWEN_VISION, "num_position_embeddings": 16},
        **QWEN_TOKENS,
    },
    "Llama4": {
        "text_config": {**TEXT, "intermediate_size_mlp": 96, "num_local_experts": 2,
                        "interleave_moe_layer_step": 2, "attention_chunk_size": 32},
        "vision_config": LLAMA4_VISION,
        "image_token_index": 310,
    },
    "Llava": {
        "text_config": text("llama"),
        "vision_config": {"model_type": "clip_vision_model", "projection_dim": 32, **VISION},
        "image_token_index": 310,
        "image_seq_length": 4,
    },
    "Mistral3": {
        "text_config": text("mistral"),
        "vision_config": {"model_type": "pixtral", **VISION},
        "image_token_index": 310,
    },
    "Idefics3": {
        "text_config": text("llama"),
        "vision_config": VISION,
        "image_token_id": 310,
        "scale_factor": 2,
    },
    "InternVL": {
        "text_config": text("qwen2"),
        "vision_config": {**VISION, "image_size": [28, 28], "patch_size": [14, 14]},
        "image_token_id": 310,
        "image_seq_length": 1,
    },
}  # fmt: skip
PALIGEMMA = {
    "text_config": text("gemma"),
    "vision_config": {
        "model_type": "siglip_vision_model",
        "vision_use_head": False,
        "projection_dim": 64,
        **VISION,
    },
    "image_token_index": 310,
    "projection_dim": 64,
}
TOWERS = ("vision", "visual", "audio", "projector", "connector")


def make(family, config=None):
    """Build a tiny model of a family; skipped where its own libraries are missing."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(
            **(config or FAMILIES[family])
        )
        try:
            model = getattr(transformers, f"{family}ForConditionalGeneration")(config)
        except ImportError as error:
            pytest.skip(str(error).strip().splitlines()[0])
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.data.mul_(2)
    return model


def in_a_tower(name):
    """Return whether a weight belongs to no language model."""
    return any(part in name for part in TOWERS)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_runs_and_peft_gives_the_same_logits(
    family, tmp_path, tokenizer, run_on
):
    """Run, export, load with PEFT: only the language model has changed, and the logits are the run's."""
    from peft import PeftModel

    original = make(family)
    before = {name: tensor.clone() for name, tensor in original.state_dict().items()}
    original.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    run = run_on(tmp_path / "base")
    made = export_adapter(run, tmp_path / "adapter")
    assert made.outside
    saved = type(original).from_pretrained(run / "model", dtype=torch.float32).eval()
    after = saved.state_dict()
    changed = {
        name for name, tensor in before.items() if not torch.equal(tensor, after[name])
    }
    assert changed
    assert not [name for name in changed if in_a_tower(name)]
    base = type(original).from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ids = torch.tensor([[2, *range(40, 60)]])
    with torch.no_grad():
        expected, found = saved(input_ids=ids).logits, adapted(input_ids=ids).logits
        untouched = original.eval()(input_ids=ids).logits
    assert (found - expected).norm() / expected.norm() <= 1e-5
    assert (untouched - expected).norm() / expected.norm() >= 1e-3


@pytest.fixture
def multimodal(tmp_path, tokenizer):
    """Return the directory of a tiny Gemma 3 with a vision tower."""
    make("Gemma3").save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def attached(base, *, type_="lora", towers=False, **table):
    """Attach an adapter to a base through the core; return its targets."""
    from mgk_core.config.resolve import structure_spec

    core = Hooks(load_plugins())
    bundle = core.build_model(HfSpec(type="hf", id=str(base), towers=towers), CPU)
    spec = structure_spec(core.plugins.registry, "adapter", {"type": type_, **table})
    return set(core.attach_adapter(bundle.model, spec, "one").targets())


@pytest.mark.parametrize("type_", ["lora", "dora", "peft:LORA"])
def test_all_linear_is_the_language_models(type_, multimodal):
    """For every adapter type; ``base.towers`` reaches the rest as well."""
    own = attached(multimodal, type_=type_)
    assert len(own) == 4 * 7
    assert not [name for name in own if in_a_tower(name)]
    everything = attached(multimodal, type_=type_, towers=True)
    assert own < everything
    assert [name for name in everything if "vision_tower" in name]


def test_a_target_inside_a_tower_is_refused(multimodal):
    """It would be trained on text that never reaches it; excluding a tower is allowed and changes nothing."""
    with pytest.raises(InputError, match=r"base\.towers"):
        attached(multimodal, targets=["*vision_tower*q_proj"])
    excluded = attached(multimodal, targets=["all-linear"], exclude=["*vision_tower*"])
    assert excluded == attached(multimodal)


def test_a_plugin_that_asks_nobody_is_caught(multimodal, monkeypatch):
    """An adapter on every layer that its plugin finds is taken off again, and the plugin is named."""
    bundle = build(HfSpec(type="hf", id=str(multimodal)), CPU)
    names = list(base_state_dict(bundle.model))

    def careless(model, spec, name):
        return attach_dense(model.model.vision_tower, name)

    monkeypatch.setattr("mgk_lora.attach.attach", careless)
    with pytest.raises(PluginError, match="keeps frozen") as caught:
        attached(multimodal)
    assert caught.value.plugin == "lora"
    assert list(base_state_dict(bundle.model)) == names


def test_a_phase_adapter_names_its_base(multimodal, run_on):
    """PEFT's configuration has base and task, and the run keeps the adapter's numbers once."""
    run = run_on(multimodal)
    folder = run / "phases/0-one/adapter"
    table = json.loads((folder / "adapter_config.json").read_text())
    assert table["base_model_name_or_path"] == str(multimodal.resolve())
    assert table["task_type"] == "CAUSAL_LM"
    assert not (folder / "adapter.safetensors").exists()
    assert all(
        "language_model" in name for name in read_tensors(folder / "state.safetensors")
    )


def test_a_prefix_model_is_refused(tmp_path, tokenizer):
    """PaliGemma's prompt sees what comes after it: a likelihood would be read from the answer."""
    make("PaliGemma", PALIGEMMA).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match="depend on later tokens"):
        build(HfSpec(type="hf", id=str(tmp_path / "base")), CPU)
