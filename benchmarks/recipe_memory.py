"""State in each recipe the GPU memory that training takes, by `mgk plan`'s arithmetic, for five sizes of Gemma 3.

    python benchmarks/recipe_memory.py            # print
    python benchmarks/recipe_memory.py --write    # exchange the line in each recipe

Nothing is loaded: a model of the real shapes is made on torch's meta device, the recipe's adapters are
attached, and a micro-batch of full length goes through it forward and backward while tensors are counted.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from typing import Any
from unittest import mock

import torch
from torch import nn

import mgk
from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.adapter import base_state_dict
from mgk_core.host.manager import load_plugins
from mgk_core.tools.footprint import peak_of, residual_bytes, size_of
from mgk_hf.head import DEVICE_BLOCK_BYTES
from mgk_phases.recipes import FOLDER, find, names

GIB = 1 << 30
NF4 = (
    0.5 + 4 / 64
)  # bytes of a weight: four bits, and an fp32 scale for each block of 64
FEW = (2, 4)  # layers
MOMENTS = 2  # of AdamW, fp32
CAUSAL = {
    "full_attention": None,
    "sliding_attention": None,
}  # as packed attention has it
SIZES = {
    "270M": (640, 18, 4, 1, 256, 2048, 262144),
    "1B": (1152, 26, 4, 1, 256, 6912, 262144),
    "4B": (2560, 34, 8, 4, 256, 10240, 262208),
    "12B": (3840, 48, 16, 8, 256, 15360, 262208),
    "27B": (5376, 62, 32, 16, 128, 21504, 262208),
}
"""Width, layers, heads, key heads, head size, inner width, vocabulary of Gemma 3's language models (their config.json)."""


def config_of(size: str, layers: int | None = None) -> Any:
    """Return the configuration of one size, or of one with fewer layers."""
    from transformers import Gemma3TextConfig

    width, whole, heads, keys, head, inner, vocabulary = SIZES[size]
    return Gemma3TextConfig(
        hidden_size=width,
        num_hidden_layers=layers or whole,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=head,
        intermediate_size=inner,
        vocab_size=vocabulary,
        attn_implementation="sdpa",
    )


def shapes(config: Any, dtype: torch.dtype = torch.bfloat16) -> Any:
    """Return a model without weights."""
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        model = Gemma3ForCausalLM(config).to(dtype)
    return model.requires_grad_(requires_grad=False).train()


def weights(model: nn.Module, *, packed: bool) -> int:
    """Return bytes of the base. packed: linear weights in nf4, as ``base.quantize = "nf4"`` keeps them."""
    whole = size_of(base_state_dict(model).values())
    if not packed:
        return whole
    head = model.get_output_embeddings()  # type: ignore[operator]
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    stored = size_of(m.weight for m in linear)
    return int(whole - stored + NF4 * sum(m.weight.numel() for m in linear))


def phase_memory(model: Any, base: Any, phase: Any, index: int) -> dict[str, int]:
    """Return part → bytes of a phase's training, with the names of `mgk plan`."""
    packed = base.quantize != "none"
    whole = weights(model, packed=packed)
    spec = phase.adapter
    given = {k: getattr(spec, k) for k in ("rank", "alpha") if hasattr(spec, k)}
    adapter = mgk.attach(
        model, spec.type, name=phase.name, targets=list(spec.targets), **given
    )
    own = size_of(adapter.parameters())
    targets = [t.parameter for t in adapter.targets().values()]
    if base.checkpointing:
        model.activation_checkpointing_enable()
    # Nothing is ever cast on the meta device, and torch raises if it is asked.
    with mock.patch.object(torch, "is_autocast_enabled", return_value=False):
        activations = peak_of(lambda: step(model, phase))
    return {
        "base": whole,
        "adapter": own,
        "residual": residual_bytes(targets) if index else 0,
        "gradients": own,
        "optimizer": MOMENTS * own,
        # what the backward pass leaves as gradients is counted above
        "activations": max(0, activations - own) + DEVICE_BLOCK_BYTES,
    }


def step(model: Any, phase: Any) -> None:
    """Put one micro-batch of full length through the decoder, forward and backward."""
    rows = min(phase.train.micro, phase.train.batch_size)
    if phase.data.type == "preference":
        rows *= 2  # both answers
    length = getattr(phase.data, "length", None) or phase.data.max_length
    ids = torch.zeros(rows, length, dtype=torch.long, device="meta")
    decoder = model.get_decoder()
    states = decoder(input_ids=ids, attention_mask=CAUSAL, use_cache=False)[0]
    states.float().sum().backward()


def needed(name: str, size: str) -> float:
    """Return GiB of a recipe's largest phase.

    Every layer takes the same, so two small models show what each one and everything else takes.
    """
    config = resolve(load_tree(file=FOLDER / f"{name}.toml"), load_plugins().registry).config  # fmt: skip
    found = []
    for index, phase in enumerate(config.phases):
        few, more = (
            sum(
                phase_memory(
                    shapes(config_of(size, n)), config.base, phase, index
                ).values()
            )
            for n in FEW
        )
        a_layer = (more - few) / (FEW[1] - FEW[0])
        found.append(few + a_layer * (SIZES[size][1] - FEW[0]))
    return max(found) / GIB


def line_of(name: str) -> str:
    """Return the comment of a recipe."""
    found = ((size, needed(name, size)) for size in SIZES)
    sizes = ", ".join(f"{size} {gib:.2g}" if gib < 10 else f"{size} {gib:.0f}" for size, gib in found)  # fmt: skip
    text = f"GPU memory of training in GiB with rows of max_length, weights in bf16 unless quantized, for Gemma 3: {sizes}."
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ")


def main() -> None:
    """Print or write the lines."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("names", nargs="*")
    given = parser.parse_args()
    for name in given.names or names():
        try:
            line = line_of(name)
        except Exception as error:  # noqa: BLE001 - one recipe must not hide the others
            print(f"{name}: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"{name}\n{line}", flush=True)
        if given.write:
            path = FOLDER / f"{name}.toml"
            text = find(name).text
            text = re.sub(r"# GPU memory of training(?:.|\n# )*\n", "", text)
            path.write_text(text.replace("\nname = ", f"\n{line}\nname = ", 1), encoding="utf-8")  # fmt: skip


if __name__ == "__main__":
    main()
