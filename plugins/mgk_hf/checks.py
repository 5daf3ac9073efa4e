"""What is checked of a base before anything is trained on it: a causal language model, with all its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mgk_core.contract.errors import InputError
from mgk_hf.network import text_config

NAMED = 5
"""How many names a message lists."""
_TOKENS = 8
_SAME = 0.03
"""Relative change of outputs up to which a later token has no effect.

Rounding in bf16 and another choice of experts stay below; where later tokens are seen it is about 1.
"""


def check_kind(name: str, config: Any) -> None:
    """Refuse an encoder or an encoder-decoder by its configuration.

    :raises InputError: the model is not a decoder alone
    """
    from transformers import AutoModelForMaskedLM

    masked = type(config) in AutoModelForMaskedLM._model_mapping  # noqa: SLF001 - no public name
    both = getattr(config, "is_encoder_decoder", False)
    if masked and not both and not getattr(config, "is_decoder", False):
        raise InputError(
            f"base.id: {name} is an encoder ({_architecture(config)}), which sees later tokens; expected"
            " a decoder-only causal language model, such as a Gemma, Llama or Qwen"
        )
    if both:
        raise InputError(
            f"base.id: {name} is an encoder-decoder ({_architecture(config)}); expected a decoder-only"
            " causal language model, such as a Gemma, Llama or Qwen"
        )


def check_weights(name: str, info: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse a base for which transformers made up weights that its files lack; return notes.

    :raises InputError: weights are missing, or their shapes differ from the configuration's
    """
    mismatched = [
        str(m[0] if isinstance(m, tuple) else m) for m in info["mismatched_keys"]
    ]
    for names, what in (
        (sorted(map(str, info["missing_keys"])), "are missing"),
        (sorted(mismatched), "have shapes that differ from config.json"),
    ):
        if names:
            raise InputError(
                f"base.id: {name}: {len(names)} weights {what} ({_some(names)}); expected the files"
                " of one whole model, as save_pretrained writes them"
            )
    unexpected = sorted(map(str, info["unexpected_keys"]))
    if not unexpected:
        return ()
    text = f"{len(unexpected)} tensors in the base's files are not weights of the model: {_some(unexpected)}"
    return (text,)


@torch.no_grad()
def check_causal(name: str, model: Any) -> None:
    """Refuse a model whose outputs depend on later tokens, such as BERT.

    Two rows that differ in their last token alone must give equal outputs before it.

    :raises InputError: they do not
    """
    embedding = model.get_input_embeddings().weight
    last = min(_TOKENS + 1, text_config(model.config).vocab_size - 1)
    ids = torch.arange(1, _TOKENS + 1, device=embedding.device).clamp(max=last)
    other = ids.clone()
    other[-1] = last if int(ids[-1]) != last else 0
    training = model.training
    model.eval()
    logits = model(input_ids=torch.stack([ids, other])).logits.float()[:, :-1]
    model.train(training)
    moved = (logits[0] - logits[1]).norm() / logits[0].norm().clamp(min=1e-30)
    if moved > _SAME:
        raise InputError(
            f"base.id: {name}: {type(model).__name__} is not a causal language model: its outputs depend"
            " on later tokens, as an encoder's do; expected a decoder, such as a Gemma, Llama or Qwen"
        )


def rows_of(model: Any) -> int:
    """Return the number of rows of the embedding table."""
    return int(model.get_input_embeddings().weight.shape[0])


def check_vocabulary(model: Any, tokenizer: Any) -> tuple[str, ...]:
    """Return a note about tokens that have no row in the embedding table.

    Several released models have such tokens, so they are refused only where they are used.

    :raises InputError: the tokenizer's own special tokens or its template use one
    """
    _check_template(tokenizer.chat_template)
    rows = rows_of(model)
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    if not beyond:
        return ()
    names = sorted(beyond, key=lambda token: beyond[token])
    text = f"the tokenizer has {len(names)} tokens beyond the embedding's {rows:,} rows ({_some(names)})"
    own = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    template = str(tokenizer.chat_template or "")
    used = [name for name in names if name in own or name in template]
    if used:
        raise InputError(
            f"base.id: {text}, and its special tokens or chat template use {_some(used)}; expected the"
            " tokenizer that belongs to the weights, or weights saved after resize_token_embeddings"
        )
    return (f"{text}; text that contains one is refused",)


def _check_template(template: Any) -> None:
    """Refuse a chat template that is not text."""
    texts = list(template.values()) if isinstance(template, dict) else [template]
    wrong = [text for text in texts if not isinstance(text, str | None)]
    if wrong:
        raise InputError(
            f"base.id: the chat template is {type(wrong[0]).__name__}; expected text, or a table of texts"
        )


def positions_of(config: Any) -> int | None:
    """Return how many positions a model with a table of absolute positions has; None: rotary or other."""
    text = text_config(config)
    if getattr(text, "rope_parameters", None) or getattr(text, "rope_theta", None):
        return None
    if (
        getattr(text, "alibi", False)
        or getattr(text, "model_type", "") in _WITHOUT_POSITIONS
    ):
        return None
    most = getattr(text, "max_position_embeddings", None)
    return int(most) if most else None


_WITHOUT_POSITIONS = ("bloom", "mamba", "mamba2", "rwkv", "falcon_mamba", "mpt")


def window_of(config: Any) -> int | None:
    """Return the context that the base was made for; None where its configuration has none."""
    most = getattr(text_config(config), "max_position_embeddings", None)
    return int(most) if most else None


def _architecture(config: Any) -> str:
    names: Sequence[str] = getattr(config, "architectures", None) or [config.model_type]
    return names[0]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
