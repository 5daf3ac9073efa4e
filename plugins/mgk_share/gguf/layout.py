"""What llama.cpp calls a model's settings and tensors, and how it lays out the tensors.

The conventions are those of llama.cpp's own converter: norms of Gemma are stored as w + 1, query and
key rows of Llama in the order of its rotary embedding, one-dimensional tensors in fp32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import field, frozen

from mgk_core.contract.errors import InputError

ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
}
"""``model_type`` of the text model → llama.cpp's name."""

TOWERS = ("vision_tower.", "multi_modal_projector.", "audio_tower.")
GEMMA_PERIOD = 6
"""Every sixth layer of Gemma 3 attends to everything; both readers assume so where a file has no pattern."""
GEMMA_LOCAL_ROPE = 10000.0
GEMMA_27B_LAYERS = 62

Array = np.ndarray[Any, Any]


@frozen
class Layout:
    """One model. config: of its text part. names: gguf's own map from transformers' names to its own."""

    architecture: str
    config: Any
    names: Any = field(repr=False)

    def name(self, tensor: str) -> str | None:
        """Return a tensor's name in the file; None for one that is left out (vision, a tied head)."""
        plain = tensor.replace("language_model.", "")
        if plain.removeprefix("model.").startswith(TOWERS):
            return None
        if plain == "lm_head.weight" and self.config.tie_word_embeddings:
            return None
        found = self.names.get_name(plain, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise InputError(
                f"{tensor}: llama.cpp's {self.architecture} has no such tensor"
            )
        return str(found)

    def convert(self, name: str, values: Array) -> Array:
        """Return a tensor's values as the file has them. name: as in the file."""
        if self.architecture == "gemma3" and name.endswith("norm.weight"):
            return values + np.float32(1.0)
        if self.architecture == "llama" and ".attn_q." in name:
            return rotary_order(values, self.config.num_attention_heads)
        if self.architecture == "llama" and ".attn_k." in name:
            return rotary_order(values, self.config.num_key_value_heads)
        return values

    def describe(self, writer: Any) -> None:
        """Write the settings that every architecture has, then this one's."""
        config = self.config
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(head_size(config))
        writer.add_value_length(head_size(config))
        writer.add_vocab_size(config.vocab_size)
        _DESCRIBE[self.architecture](config, writer)


def layout_of(config: Any) -> Layout:
    """Return the layout of a configuration of transformers.

    :raises InputError: llama.cpp has no such architecture here, or no word for one of its settings
    """
    import gguf

    text = config.get_text_config()
    architecture = ARCHITECTURES.get(text.model_type)
    if architecture is None:
        known = ", ".join(ARCHITECTURES)
        raise InputError(
            f"--format gguf: {text.model_type!r} is not supported ({known})"
        )
    number = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
    names = gguf.get_tensor_name_map(number, text.num_hidden_layers)
    return Layout(architecture, text, names)


def head_size(config: Any) -> int:
    """Return the width of one attention head."""
    own = getattr(config, "head_dim", None)
    return int(own or config.hidden_size // config.num_attention_heads)


def rotary_order(values: Array, heads: int) -> Array:
    """Interleave the two halves of each head's rows: transformers rotates (i, i + d/2), llama.cpp (2i, 2i + 1).

    values: (heads · d, …)
    """
    half = values.shape[0] // heads // 2
    split = values.reshape(heads, 2, half, *values.shape[1:])
    return split.swapaxes(1, 2).reshape(values.shape)


def rope_factors(config: Any) -> Array | None:
    """Return what Llama 3.1's scaling divides each frequency by, (d/2,) fp32; None without such scaling."""
    rope = _rope(config)
    if rope["rope_type"] != "llama3":
        return None
    size = head_size(config)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    trained = rope["original_max_position_embeddings"]
    factors = []
    for i in range(0, size, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / size)
        if wavelength < trained / high:
            factors.append(1.0)
        elif wavelength > trained / low:
            factors.append(rope["factor"])
        else:
            smooth = (trained / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, dtype=np.float32)


def _rope(config: Any) -> dict[str, Any]:
    found = dict(config.rope_parameters)
    return dict(found.get("full_attention", found))


def _refuse(what: str) -> InputError:
    return InputError(
        f"--format gguf: llama.cpp does not know {what}; share RUN/model instead"
    )


def _describe_gemma3(config: Any, writer: Any) -> None:
    local = config.rope_parameters["sliding_attention"]
    if local["rope_theta"] != GEMMA_LOCAL_ROPE or local["rope_type"] != "default":
        raise _refuse("rotary settings of its own for Gemma's sliding layers")
    # llama.cpp takes the scale of queries from the head's width, and from hidden / heads for the 27B.
    large = config.num_hidden_layers == GEMMA_27B_LAYERS
    width = config.hidden_size // config.num_attention_heads
    if config.query_pre_attn_scalar != (width if large else head_size(config)):
        raise _refuse("this model's query_pre_attn_scalar")
    _scaled_rope(config, writer)
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_sliding_window(config.sliding_window)
    usual = [(i + 1) % GEMMA_PERIOD != 0 for i in range(len(sliding))]
    if sliding != usual:
        writer.add_sliding_window_pattern(sliding)


def _describe_llama(config: Any, writer: Any) -> None:
    writer.add_rope_dimension_count(head_size(config))
    _scaled_rope(config, writer)


def _describe_qwen(config: Any, writer: Any) -> None:
    if "sliding_attention" in (getattr(config, "layer_types", None) or ()):
        raise _refuse("sliding windows of Qwen")
    _scaled_rope(config, writer)


def _scaled_rope(config: Any, writer: Any) -> None:
    import gguf

    rope = _rope(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope["rope_type"]
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    elif kind not in ("default", "llama3"):  # llama3's factors are a tensor
        raise _refuse(f"rope_type {kind!r} here")


_DESCRIBE: dict[str, Callable[[Any, Any], None]] = {
    "gemma3": _describe_gemma3,
    "llama": _describe_llama,
    "qwen2": _describe_qwen,
    "qwen3": _describe_qwen,
}
