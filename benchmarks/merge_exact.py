"""How exact a merge is: merged and unmerged outputs compared with each other and with float64; PEFT's merge of the same deltas beside it.

    OMP_NUM_THREADS=1 python benchmarks/merge_exact.py

Three phases in a row, each a LoRA trained by mgk for a few steps of Adam; four seeds. PEFT gets the very same factors
and the same base, and merges them into a chain of its own. Errors are relative 2-norms over the outputs (logits) of
fixed inputs; the largest of the twelve. *against float64*: ‖outputs − outputs of the same weights and factors in
float64‖; merged's over live's. *less PEFT's*: mean of the twelve differences between the two errors, in standard errors
of that mean. Both errors are rounding noise of two forward passes: above 4, mgk's would be larger by more than chance.

A second table: ten phases of ‖ΔW‖ = 1e-3 ‖W‖ on bf16 weights; the share of the summed delta that is there in the end.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import warnings
from collections.abc import Callable

import torch
from attrs import frozen
from torch import Tensor, nn

import mgk
from mgk_core.contract.adapter import Adapter, state_of

PHASES, SEEDS, STEPS, RANK, ALPHA = 3, 4, 6, 4, 6.0
LIMITS = {"network": 1e-6, "model": 5e-6}


@frozen
class Subject:
    """name; kind ``network`` or ``model``; targets for mgk and for PEFT (None: PEFT has no such case)."""

    name: str
    kind: str
    build: Callable[[], tuple[nn.Module, dict[str, Tensor]]]
    targets: tuple[str, ...] = ("all-linear",)
    peft: str | tuple[str, ...] | None = "all-linear"


@frozen
class Row:
    """Largest errors over phases and seeds. excess: mgk's mean less PEFT's, in standard errors; None without PEFT."""

    subject: Subject
    merged_live: float
    ratio: float
    peft_merged_live: float | None
    excess: float | None


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Return logits, or the last hidden state where a model has no head."""
    result = model(**inputs)
    return (
        result if isinstance(result, Tensor) else getattr(result, "logits", result[0])
    )


class Named(nn.Module):
    """A stack of layers that takes its input by name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Channels(nn.Module):
    """Flatten all but the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def linear() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Named(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 96), nn.GELU(), nn.Linear(96, 32)
    )
    return net, {"x": torch.randn(32, 64)}


def embedding() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Named(nn.Embedding(101, 48), nn.Linear(48, 80), nn.GELU(), nn.Linear(80, 32))
    return net, {"x": torch.randint(0, 101, (8, 20))}


def conv() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Named(
        nn.Conv2d(3, 12, 3, padding=1), nn.GELU(), nn.Conv2d(12, 20, 3, stride=2), nn.GELU(), Channels(),
        nn.Linear(20 * 16, 10),
    )  # fmt: skip
    return net, {"x": torch.randn(16, 3, 10, 10)}


def grouped() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Named(
        nn.Conv1d(12, 24, 5, groups=4, padding=2),
        nn.GELU(),
        nn.Conv1d(24, 18, 3, groups=3),
    )
    return net, {"x": torch.randn(16, 12, 20)}


def transposed() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers.pytorch_utils import Conv1D

    net = Named(Conv1D(96, 64), nn.GELU(), Conv1D(40, 96))
    for module in net.layers[::2]:
        nn.init.normal_(module.weight, std=0.1)
    return net, {"x": torch.randn(16, 64)}


def attention() -> tuple[nn.Module, dict[str, Tensor]]:
    net = Named(
        nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, batch_first=True),
        nn.Linear(48, 20),
    )
    return net, {"x": torch.randn(8, 12, 48)}


def language_model(
    config: str, model: str, **keys: object
) -> Callable[[], tuple[nn.Module, dict[str, Tensor]]]:
    """A tiny model of a transformers architecture with random weights."""

    def build() -> tuple[nn.Module, dict[str, Tensor]]:
        import transformers

        made = getattr(transformers, model)(getattr(transformers, config)(**keys))
        inputs = {"input_ids": torch.randint(3, 190, (4, 16))}
        if model.startswith("T5"):
            inputs["decoder_input_ids"] = torch.randint(3, 190, (4, 10))
        return made, inputs

    return build


DECODER = {
    "vocab_size": 199, "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "max_position_embeddings": 64,
}  # fmt: skip

SUBJECTS = (
    Subject("Linear", "network", linear),
    Subject("Embedding", "network", embedding, ("layers.0", "all-linear"), ("layers.0", "layers.1", "layers.3")),
    Subject("Conv2d", "network", conv, ("*",), ("layers.0", "layers.2", "layers.5")),
    Subject("Conv1d, groups", "network", grouped, ("*",), None),
    Subject("Conv1D (transposed)", "network", transposed, ("*",), ("layers.0", "layers.2")),
    Subject("MultiheadAttention", "network", attention, ("all-linear",), (
        "layers.0.self_attn", "layers.0.linear1", "layers.0.linear2", "layers.1")),
    Subject("Gemma 3", "model", language_model("Gemma3TextConfig", "Gemma3ForCausalLM", head_dim=16, **DECODER)),
    Subject("Llama", "model", language_model("LlamaConfig", "LlamaForCausalLM", **DECODER)),
    Subject("Qwen 2", "model", language_model("Qwen2Config", "Qwen2ForCausalLM", **DECODER)),
    Subject("GPT-2", "model", language_model(
        "GPT2Config", "GPT2LMHeadModel", vocab_size=199, n_embd=64, n_layer=3, n_head=4, n_positions=64)),
    Subject("OPT", "model", language_model(
        "OPTConfig", "OPTForCausalLM", vocab_size=199, hidden_size=64, ffn_dim=112, num_hidden_layers=3,
        num_attention_heads=4, word_embed_proj_dim=64, max_position_embeddings=64)),
    Subject("T5", "model", language_model(
        "T5Config", "T5ForConditionalGeneration", vocab_size=199, d_model=64, d_kv=16, d_ff=112, num_layers=2,
        num_heads=4)),
    Subject("BERT", "model", language_model(
        "BertConfig", "BertForMaskedLM", vocab_size=199, hidden_size=64, intermediate_size=112, num_hidden_layers=3,
        num_attention_heads=4, max_position_embeddings=64)),
)  # fmt: skip


def train(
    model: nn.Module, adapter: Adapter, inputs: dict[str, Tensor], seed: int
) -> None:
    """A few steps of Adam towards random outputs."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=3e-3)
    for _ in range(STEPS):
        found = outputs(model, inputs)
        wanted = torch.randn(found.shape, generator=generator) * found.detach().std()
        optimizer.zero_grad()
        (found - wanted).square().mean().backward()
        optimizer.step()


def error(found: Tensor, reference: Tensor) -> float:
    return float(
        (found.double() - reference.double()).norm() / reference.double().norm()
    )


def in_float64(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    wide = copy.deepcopy(model).double()
    return outputs(
        wide, {n: t.double() if t.is_floating_point() else t for n, t in inputs.items()}
    )


def build(subject: Subject, seed: int) -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(seed)
    model, inputs = subject.build()
    return model.eval().requires_grad_(False), inputs


def peft_key(weight: str, letter: str, own: dict[str, Tensor]) -> str:
    """Return the name that PEFT gives to a factor of one of the base's weights."""
    module = weight.removesuffix(".weight").removesuffix(".in_proj_weight")
    inside = module.replace("self_attn.out_proj", "self_attn.base_layer.out_proj")
    names = (f"{module}.lora_{letter}.default.weight", f"{inside}.lora_{letter}.default.weight",
             f"{module}.lora_embedding_{letter}.default")  # fmt: skip
    return next(key for name in names if (key := f"base_model.model.{name}") in own)


@torch.no_grad()
def by_peft(
    model: nn.Module, adapter: Adapter, subject: Subject, inputs: dict[str, Tensor]
) -> tuple[nn.Module, float]:
    """Merge the same factors with PEFT; return its merged model and how far it is from the unmerged one."""
    from peft import LoraConfig, get_peft_model

    targets = (
        subject.peft if isinstance(subject.peft, str) else list(subject.peft or ())
    )
    wrapped = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets)
    ).eval()
    own = dict(wrapped.named_parameters())
    for name in adapter.targets():
        factors = adapter.factors(name)
        for letter, value in (("A", factors.a), ("B", factors.b)):
            key = peft_key(name, letter, own)
            own[key].copy_(value.reshape(own[key].shape))
    live = outputs(wrapped, inputs)
    merged = wrapped.merge_and_unload(safe_merge=True)
    return merged, error(outputs(merged, inputs), live)


def chain(subject: Subject, seed: int) -> list[tuple[float, float, float]]:
    """Return the error of merged against unmerged, its ratio against float64, and PEFT's error, after each phase."""
    model, inputs = build(subject, seed)
    peft_model = build(subject, seed)[0] if subject.peft is not None else None
    rows = []
    for phase in range(PHASES):
        adapter = mgk.attach(
            model,
            "lora",
            name=f"phase{phase}",
            seed=phase,
            rank=RANK,
            alpha=ALPHA,
            targets=list(subject.targets),
        )
        train(model, adapter, inputs, phase)
        with torch.no_grad():
            live, exact = outputs(model, inputs), in_float64(model, inputs)
            found = math.nan
            if peft_model is not None:
                peft_model, found = by_peft(peft_model, adapter, subject, inputs)
            mgk.merge(model, adapter)
            merged = outputs(model, inputs)
        rows.append(
            (error(merged, live), error(merged, exact) / error(live, exact), found)
        )
    return rows


def measure(subject: Subject) -> Row:
    rows = [row for seed in range(SEEDS) for row in chain(subject, seed)]
    own, ratios, peft = (list(column) for column in zip(*rows, strict=True))
    if subject.peft is None:
        return Row(subject, max(own), max(ratios), None, None)
    differences = [a - b for a, b in zip(own, peft, strict=True)]
    spread = statistics.stdev(differences) / math.sqrt(len(differences))
    excess = statistics.mean(differences) / spread if spread else 0.0
    return Row(subject, max(own), max(ratios), max(peft), excess)


def ten_phases(way: str) -> tuple[float, float]:
    """Return the share of the summed delta in the visible weight, and in weight + residual."""
    torch.manual_seed(0)
    model = (
        nn.Sequential(nn.Linear(640, 512, bias=False)).bfloat16().requires_grad_(False)
    )
    start, wanted = model[0].weight.float(), torch.zeros(512, 640)
    for phase in range(10):
        generator = torch.Generator().manual_seed(phase)
        a, b = (
            torch.randn(8, 640, generator=generator),
            torch.randn(512, 8, generator=generator),
        )
        b *= 1e-3 * start.norm() / (2 * b @ a).norm()
        wanted += 2 * b @ a
        if way == "PEFT":
            model = peft_phase(model, a, b)
            continue
        adapter = mgk.attach(
            model, "lora", name=f"p{phase}", rank=8, alpha=16, targets=["0"]
        )
        adapter.load_state_dict({"0.weight/a": a, "0.weight/b": b})
        mgk.merge(model, adapter, residual=way == "mgk")
    visible = model[0].weight.float() - start
    held = visible + state_of(model).residuals.get("0.weight", torch.zeros(()))
    return tuple(
        float((part * wanted).sum() / wanted.square().sum()) for part in (visible, held)
    )


@torch.no_grad()
def peft_phase(model: nn.Module, a: Tensor, b: Tensor) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["0"])
    )
    layer = wrapped.base_model.model[0]
    layer.lora_A["default"].weight.copy_(a)
    layer.lora_B["default"].weight.copy_(b)
    return wrapped.merge_and_unload(safe_merge=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(
        "| fp32, three trained phases | merged against unmerged | limit | PEFT's | less PEFT's | merged ÷ unmerged, float64 |"
    )
    print("|---|---|---|---|---|---|")
    for subject in SUBJECTS:
        row = measure(subject)
        peft = (
            "refuses |"
            if row.peft_merged_live is None
            else f"{row.peft_merged_live:.2e} | {row.excess:+.1f}"
        )
        print(
            f"| {subject.name} | {row.merged_live:.2e} | {LIMITS[subject.kind]:.0e} | {peft} | {row.ratio:.2f} |"
        )
    print(
        "\n| bf16, ten phases of 1e-3 | visible weight | weight + residual |\n|---|---|---|"
    )
    for way in ("mgk", "mgk, residual = false", "PEFT"):
        visible, held = ten_phases(way)
        print(f"| {way} | {visible:.3f} | {held:.3f} |")


if __name__ == "__main__":
    main()
