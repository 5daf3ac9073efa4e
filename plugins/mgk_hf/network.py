"""The parts of a transformers model that mgk calls: its decoder, its head, what they can do."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from attrs import frozen
from torch import Tensor, nn

from mgk_hf.attention import ARGUMENT, NAME, register, without_masks
from mgk_hf.batch import PADDING, TokenBatch
from mgk_hf.cpu.lean import kept_narrow
from mgk_hf.head import Head
from mgk_hf.layout import layout_of
from mgk_hf.pictures import PictureBatch
from mgk_hf.precision import MixedLinear

_RECURRENT = ("linear_attention", "mamba", "recurrent", "conv", "chunked_attention")


@frozen(eq=False)
class Network:
    """A causal language model taken apart.

    whole: the transformers model. decoder: ids → hidden states (of a multimodal model, its
    language model). language: names of the modules that make up a multimodal model's language
    model, empty where the whole model is one. packs: whether several sequences can share a row.
    narrow: whether activations kept for the backward pass may be bf16.
    """

    whole: nn.Module
    decoder: nn.Module
    head: Head
    language: tuple[str, ...]
    packs: bool
    narrow: bool = False

    def hidden(self, batch: TokenBatch) -> Tensor:
        """Return the last hidden states, (B·T, D).

        A batch with several sequences in a row needs ``packs``; padded rows always work.
        """
        out = self.decoder(
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            use_cache=False,
            **self._attention(batch),
        )
        states: Tensor = out.last_hidden_state
        return states.flatten(0, 1)

    def _seeing(self, batch: PictureBatch) -> Tensor:
        """Return the last hidden states of rows with pictures; the whole model embeds these."""
        whole: Any = self.whole
        out = whole.base_model(**batch.inputs, use_cache=False)
        states: Tensor = out.last_hidden_state
        return states.flatten(0, 1)

    def _attention(self, batch: TokenBatch) -> dict[str, Any]:
        if self.packs:
            # Without a mask transformers asks the device whether the row is packed, and waits for the answer.
            ids, mask = batch.input_ids, None
            if ids.device.type != "cpu":
                mask = torch.ones_like(ids, dtype=torch.bool)
            return {ARGUMENT: layout_of(batch), "attention_mask": mask}
        return {"attention_mask": (batch.segment_ids != PADDING).long()}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """Return `hidden` without letting transformers build masks that nobody reads."""
        keeping = (
            kept_narrow() if self.narrow and torch.is_grad_enabled() else nullcontext()
        )
        if isinstance(batch, PictureBatch):
            with keeping:
                return self._seeing(batch)
        masks = without_masks() if self.packs else nullcontext()
        with keeping, masks:
            return self.hidden(batch)


def take_apart(model: Any) -> Network:
    """Find decoder and head of a transformers model and switch it to packed attention if it can."""
    text = text_config(model.config)
    decoder = _decoder(model)
    packs = can_pack(model, text)
    if packs:
        register()
        text._attn_implementation = NAME  # noqa: SLF001 - set_attn_implementation would reset vision towers too
    narrow = any(isinstance(m, MixedLinear) for m in decoder.modules())
    language = () if text is model.config else _language(model, decoder)
    return Network(model, decoder, _head(model, text), language, packs, narrow)


def _language(model: Any, decoder: nn.Module) -> tuple[str, ...]:
    """Return the names of decoder and output head in a multimodal model."""
    parts = (decoder, model.get_output_embeddings())
    return tuple(name for name, module in model.named_modules() if module in parts)


def _head(model: Any, text: Any) -> Head:
    scale = getattr(text, "logit_scale", None) or 1.0
    divisor = getattr(text, "logits_scaling", None) or 1.0
    return Head(
        model.get_output_embeddings(),
        getattr(text, "final_logit_softcapping", None),
        scale / divisor,
    )


def text_config(config: Any) -> Any:
    """Return the language model's part of a configuration."""
    get = getattr(config, "get_text_config", None)
    return config if get is None else get(decoder=True)


def _decoder(model: Any) -> nn.Module:
    """Return the stack of layers that turns ids into hidden states."""
    found = model.get_decoder()
    inner = getattr(
        found, "language_model", None
    )  # a multimodal model's decoder keeps its towers beside it
    result = inner if isinstance(inner, nn.Module) else found
    if hasattr(result, "lm_head"):  # Llama 4 keeps a whole causal model there
        result = result.model
    if not isinstance(result, nn.Module):
        raise TypeError(f"{type(model).__name__} has no decoder")
    return result


def can_pack(model: Any, text: Any) -> bool:
    """Return whether only attention mixes positions and mgk may provide it.

    Recurrent layers carry state across boundaries; attention with a logit cap is eager only.
    """
    kinds = set(getattr(text, "layer_types", None) or ())
    return bool(
        getattr(model, "_supports_attention_backend", False)
        and getattr(text, "_attn_implementation", "eager") in {"sdpa", NAME}
        and getattr(text, "attn_logit_softcapping", None) is None
        and getattr(text, "attention_chunk_size", None) is None
        and not any(kind in name for name in kinds for kind in _RECURRENT)
        and getattr(text, "is_causal", True)
        and not getattr(text, "use_bidirectional_attention", False)
        and not torch.compiler.is_compiling()
    )
