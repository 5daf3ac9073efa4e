"""Small model directories of the families that llama.cpp reads, with both kinds of tokenizers."""

import json

import torch

from mgk_hf.tiny import tiny_tokenizer

TEXTS = (
    "당뇨병은 혈당이 높은 상태가 오래 계속되는 대사 질환이다.",
    "The heart pumps blood through the body, 12345 times a day.",
    "폐렴은 폐에 생긴 염증으로,  기침과 열이 난다.\n\n간은 해독을 맡는다.",
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip


def sentencepiece_like(*, prefix=False):
    """Return a BPE with byte fallback and ▁ for spaces, as Gemma's is; prefix: as Llama 2's, ▁ before a text."""
    from tokenizers import (  # fmt: skip
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(
        models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(
        vocab_size=350, special_tokens=[*special, *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator([t.replace(" ", "▁") for t in TEXTS], trainer)
    # Byte tokens are part of the vocabulary, but not matched in texts.
    rules = json.loads(tokenizer.to_str())
    rules["added_tokens"] = rules["added_tokens"][: len(special)]
    tokenizer = Tokenizer.from_str(json.dumps(rules))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    )  # fmt: skip


def byte_level(split=None):
    """Return a byte-level BPE with ChatML's marks; split: the expression of a family."""
    tokenizer = tiny_tokenizer(TEXTS, 400)
    if split is not None:
        from tokenizers import Regex, pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]}
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def build(family, vocabulary):
    """Return a small model of a family whose norms and biases are not what they begin with."""
    import transformers as t

    sizes = {**SIZES, "vocab_size": vocabulary}
    gemma = {
        **sizes,
        "num_hidden_layers": 7,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 8,
    }
    makers = {
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**gemma)),
        "gemma3-vision": lambda: t.Gemma3ForConditionalGeneration(t.Gemma3Config(
            text_config=t.Gemma3TextConfig(**gemma).to_dict(), mm_tokens_per_image=4,
            vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
                           "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        )),
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes, tie_word_embeddings=False)),
        "llama3": lambda: t.LlamaForCausalLM(t.LlamaConfig(**sizes, rope_parameters=LLAMA3)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**sizes)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**sizes, head_dim=128)),
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = makers[family]().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.normal_(std=0.2) if parameter.dim() < 2 else parameter.mul_(4)
    return model
