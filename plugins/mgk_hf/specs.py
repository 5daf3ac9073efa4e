"""Configuration of a Hugging Face base (table ``base``, ``type = "hf"``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from attrs import frozen

from mgk_core.contract.specs import Retired, Spec, at_least, one_of, option

_TRAIN_ROWS = "train the new tokens in a phase of their own, with adapter = {type = 'rows', new = true}"


@frozen(kw_only=True)
class UnpackSpec(Spec):
    """Merge into full precision what was trained on a quantized base; see `mgk_hf.unpack`."""

    requantize: bool = option(
        False,
        help="requantize the merged weights for the next phase; the full-precision ones are kept as well",
    )


@frozen(kw_only=True)
class HfSpec(Spec):
    """A causal language model of transformers: a shipped one, a directory, or a hub id."""

    retired: ClassVar[Mapping[str, Retired]] = {
        "new_tokens_steps": Retired(30, _TRAIN_ROWS),
        "new_tokens_lr": Retired(1e-3, _TRAIN_ROWS),
    }

    id: str = option(
        "gemma-3-270m-q4",
        help="gemma-3-270m-q4 (dequantized from Q4_K_M: not the scores of google/gemma-3-270m), tiny-gemma,"
        " a local directory, or a hub id",
    )
    revision: str | None = option(
        None, help="commit, tag or branch of a hub id; a commit makes a run repeatable"
    )
    dtype: str = option(
        "auto", one_of("auto", "stored", "float32", "bfloat16", "float16"),
        help="of the weights; auto: on a CPU float32 with the vocabulary's table as stored, else as stored; stored:"
        " on a CPU too, in half the memory, with the same products",
    )  # fmt: skip
    compute: str = option(
        "auto", one_of("auto", "float32", "bfloat16"),
        help="of the matrix products on a CPU; auto: bfloat16 where the CPU multiplies it in hardware",
    )  # fmt: skip
    head: str = option(
        "auto", one_of("auto", "exact", "screened"),
        help="of losses and scores; screened: int8 logits for tokens without weight, fp32 for the rest; auto:"
        " screened on CPUs with int8 products and a large vocabulary",
    )  # fmt: skip
    attention: str = option(
        "auto", one_of("auto", "sdpa", "eager", "flash_attention_2"),
        help="auto: packed sequences through sdpa where the model allows it; any other: padded rows",
    )  # fmt: skip
    quantize: str = option(
        "none",
        one_of("none", "int8", "nf4"),
        help="load the base quantized, by bitsandbytes",
    )
    double_quant: bool = option(
        False,
        help="quantize the scales of nf4 weights as well: about 0.4 bits less per weight",
    )
    checkpointing: bool = option(
        False,
        help="recompute activations in the backward pass: less memory, a third more time",
    )
    device_map: str | None = option(
        None,
        help="spread a large model over devices, as accelerate's device_map: 'auto' ...",
    )
    trust_remote_code: bool = option(
        False, help="run Python code that comes with the model"
    )
    towers: bool = option(
        False,
        help="let adapters change a multimodal model's other parts too: vision and audio towers, projector",
    )
    thinking: str = option(
        "auto", one_of("auto", "off", "closed", "keep"),
        help="blocks such as <think> before an answer; off: none, in the saved template too; closed: the model"
        " learns to close it at once; keep: answers hold their own; auto: off where the template has a switch",
    )  # fmt: skip
    system: str = option(
        "", help="system message of every chat that has none, in the saved template too"
    )
    fold_system: bool = option(
        False,
        help="put system messages before the first user message, for templates without the role",
    )
    new_tokens: str | tuple[str, ...] = option(
        (),
        help="tokens to add to the vocabulary, or a file of them, one a line; an adapter of type 'rows' trains them",
    )
    new_tokens_from: str | tuple[str, ...] = option(
        (), help="files of texts from which tokens to add are chosen"
    )
    new_tokens_count: int = option(
        256,
        at_least(1),
        help="how many are chosen from the texts: those that save most",
    )
    token_budget: int = option(
        1024, at_least(64), help="positions computed together when options are scored"
    )
    text: str = option(
        "package:mgk_phases/data/korean_medical/text/train.jsonl",
        help="what tiny-gemma's tokenizer is made from: a file of text or JSON lines",
    )
    seed: int = option(
        0,
        at_least(0),
        help="of tiny-gemma's weights: the base is part of the declaration",
    )

    @classmethod
    def speeds(cls) -> Mapping[str, str]:
        """Return how fast this CPU is at products, the vocabulary head and packed rows."""
        from mgk_hf.cpu.speeds import speeds

        return speeds()

    def __attrs_post_init__(self) -> None:
        if self.double_quant and self.quantize != "nf4":
            raise ValueError(
                f"double_quant: it quantizes the scales of nf4 weights; expected quantize = 'nf4' beside it, got {self.quantize!r}"
            )
