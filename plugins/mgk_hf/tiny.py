"""``tiny-gemma``: a small Gemma 3 with random weights and a tokenizer made from given text.

For tests and for machines without the real base. It has every kind of part that the real one has:
sliding and full attention, grouped queries, scaled and tied embeddings, the four norms.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MODEL_ID = "tiny-gemma"
VOCABULARY = 2048
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
"""In Gemma's own order, so that ids of special tokens agree with the real base's."""


def tiny_tokenizer(text: Iterable[str], vocabulary: int = VOCABULARY) -> Any:
    """Train a byte-level BPE; any text in any script comes back from it unchanged.

    Deterministic: the same text gives the same tokenizer. ``<bos>`` is put before every text, as
    Gemma's tokenizer does.
    """
    from tokenizers import (
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A",
        pair="<bos> $A $B",
        special_tokens=[("<bos>", SPECIAL.index("<bos>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106 - a mark in text, no password
        eos_token="<eos>",  # noqa: S106 - a mark in text, no password
        bos_token="<bos>",  # noqa: S106 - a mark in text, no password
        unk_token="<unk>",  # noqa: S106 - the same
    )


def tiny_config(vocabulary: int = VOCABULARY, **changes: Any) -> Any:
    """Return the configuration; ``changes`` are any of `Gemma3TextConfig`'s keys."""
    from transformers import Gemma3TextConfig

    settings: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16,
        "sliding_window": 32, "max_position_embeddings": 2048, "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "attn_implementation": "sdpa",
    }  # fmt: skip
    return Gemma3TextConfig(**{**settings, **changes})


def tiny_model(vocabulary: int = VOCABULARY, seed: int = 0, **changes: Any) -> Any:
    """Build the model with weights drawn from ``seed``; torch's own generator is left as it was."""
    import torch
    from transformers import Gemma3ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gemma3ForCausalLM(tiny_config(vocabulary, **changes))
