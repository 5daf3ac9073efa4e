"""PEFT's adapter directory: ``adapter_config.json`` and ``adapter_model.safetensors``, without PEFT.

Where B does not begin at zero (PiSSA, MiLoRA, CorDA, LoRA-Null), the plain LoRA of twice the rank is
written that acts the same on the untouched base: A' = [A; A₀], B' = [B, −B₀].
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgk_core.contract.errors import InputError
from mgk_lora.adapter import LoraAdapter
from mgk_lora.attach import attach
from mgk_lora.kinds import Candidate
from mgk_lora.pair import Pair
from mgk_lora.spec import RESIDUAL, DoraSpec, LoraSpec

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_KEY = re.compile(
    rf"{re.escape(_PREFIX)}(?P<module>.+)\."
    r"(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_[AB]|lora_magnitude_vector(?:\.weight)?)"
)
_PART = {
    "lora_A.weight": "a", "lora_embedding_A": "a", "lora_B.weight": "b", "lora_embedding_B": "b", "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_UNTOUCHED = (
    True,
    False,
    None,
    "gaussian",
    "orthogonal",
    "eva",
)  # initialisations that leave the base alone
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # keys that change what an adapter computes: the values that do not
    "bias": ("none", None), "modules_to_save": (None, []), "layer_replication": (None, []), "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []), "trainable_token_indices": (None, [], {}), "use_bdlora": (None, False),
    "target_parameters": (None, []), "velora_config": (None,), "kasa_config": (None,), "monteclora_config": (None,),
    "arrow_config": (None,),
}  # fmt: skip


def why_not(adapter: LoraAdapter) -> str | None:
    """Return why PEFT's format cannot hold this adapter, or None where it can."""
    for candidate in adapter.chosen:
        if candidate.layout.batched:
            return f"{candidate.name}: PEFT has no such delta for grouped convolutions and stacks of matrices"
        if isinstance(candidate.module, nn.MultiheadAttention):
            return f"{candidate.name}: PEFT (0.21.2 at least) adds the delta of nn.MultiheadAttention's out_proj twice"
        if candidate.kind == "weight":
            return f"{candidate.name}: PEFT adapts no plain weights of this kind"
        if candidate.kind == "embedding" and adapter.spec.bias:
            return f"{candidate.name}: PEFT has no bias for embeddings"
    return None


def save_peft(adapter: LoraAdapter, directory: Path) -> None:
    """Write ``adapter`` so that ``PeftModel.from_pretrained`` loads it.

    :raises InputError: PEFT has no type for it (see `why_not`)
    """
    if (reason := why_not(adapter)) is not None:
        raise InputError(
            f"adapter {adapter.name!r} cannot be written in PEFT's format: {reason}"
        )
    tensors: dict[str, Tensor] = {}
    for candidate in adapter.chosen:
        tensors |= _to_peft(candidate, adapter.pair(candidate.weight))
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    (directory / CONFIG).write_text(
        json.dumps(_config(adapter), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def load_into(adapter: LoraAdapter, directory: Path) -> None:
    """Load a directory that `save_peft` wrote for an adapter of the same configuration, bit for bit."""
    config, tensors = _read(directory)
    del config
    state = adapter.state_dict()
    for candidate in adapter.chosen:
        pair = adapter.pair(candidate.weight)
        for part, tensor in _from_peft(candidate, pair, tensors, directory).items():
            state[f"{candidate.weight}/{part}"] = tensor
    adapter.load_state_dict(state)


def attach_peft(model: nn.Module, directory: Path, name: str) -> LoraAdapter:
    """Attach an adapter that PEFT wrote; targets, ranks and scales are taken from its files.

    :raises InputError: it is not a LoRA, uses a feature that mgk's LoRA lacks, or does not fit the model
    """
    config, tensors = _read(directory)
    _check(config, directory)
    modules = {
        module: tensors[module]["a"].shape[0]
        for module in tensors
        if "a" in tensors[module]
    }
    exact = {module: f"re:{re.escape(module)}" for module in modules}
    cls = DoraSpec if config.get("use_dora") else LoraSpec
    spec = cls(
        type="dora" if cls is DoraSpec else "lora",
        rank=int(config["r"]),
        alpha=float(config["lora_alpha"]),
        targets=tuple(exact.values()),
        rank_pattern={exact[m]: int(r) for m, r in modules.items()},
        alpha_pattern={exact[m]: _alpha(config, m) for m in modules},
        rslora=bool(config.get("use_rslora", False)),
        dropout=float(config.get("lora_dropout", 0.0)),
        bias=bool(config.get("lora_bias", False)),
    )
    adapter = attach(model, spec, name, any_rank=True)
    try:
        load_into(adapter, directory)
    except BaseException:
        adapter.detach()
        raise
    return adapter


def _to_peft(candidate: Candidate, pair: Pair) -> dict[str, Tensor]:
    a, b = pair.a.detach(), pair.b.detach()
    if pair.a0 is not None and pair.b0 is not None:
        a, b = torch.cat([a, pair.a0], dim=0), torch.cat([b, -pair.b0], dim=1)
    kernel = candidate.layout.shape[2:] if candidate.kind == "conv" else ()
    if kernel:
        a = a.reshape(a.shape[0], -1, *kernel)
        b = b.reshape(*b.shape, *[1] * len(kernel))
    key = _PREFIX + candidate.name
    names = (
        ("lora_embedding_A", "lora_embedding_B")
        if candidate.kind == "embedding"
        else ("lora_A.weight", "lora_B.weight")
    )
    result = {f"{key}.{names[0]}": a, f"{key}.{names[1]}": b}
    if pair.bias is not None:
        result[f"{key}.lora_B.bias"] = pair.bias.detach()
    if pair.magnitude is not None:
        shape = (1, -1, *[1] * len(kernel)) if kernel else (-1,)
        result[f"{key}.lora_magnitude_vector"] = pair.magnitude.detach().reshape(shape)
    return {k: v.contiguous().cpu().clone() for k, v in result.items()}


def _from_peft(
    candidate: Candidate,
    pair: Pair,
    tensors: Mapping[str, Mapping[str, Tensor]],
    directory: Path,
) -> dict[str, Tensor]:
    module = candidate.name
    found = dict(tensors.get(module, {}))
    if "a" not in found or "b" not in found:
        raise InputError(f"{directory / TENSORS}: has no factors for {module}")
    found["a"] = found["a"].reshape(found["a"].shape[0], -1)
    found["b"] = found["b"].reshape(found["b"].shape[0], -1)
    if pair.a0 is not None:
        rank = pair.a.shape[0]
        found["a"], found["a0"] = found["a"][:rank], found["a"][rank:]
        found["b"], found["b0"] = found["b"][:, :rank], -found["b"][:, rank:]
    if pair.magnitude is not None and "magnitude" in found:
        found["magnitude"] = found["magnitude"].reshape(pair.magnitude.shape)
    return found


def _read(directory: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """Return the configuration, and module → part → tensor."""
    try:
        config = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        raw = load_file(directory / TENSORS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory}: not a readable PEFT adapter: {error}"
        ) from error
    tensors: dict[str, dict[str, Tensor]] = {}
    for key, tensor in raw.items():
        match = _KEY.fullmatch(key)
        if match is None or ".base_layer." in key:
            raise InputError(
                f"{directory / TENSORS}: {key}: not a tensor of a LoRA that mgk reads"
            )
        tensors.setdefault(match["module"], {})[_PART[match["part"]]] = tensor
    return config, tensors


def _check(config: Mapping[str, Any], directory: Path) -> None:
    problems = []
    if config.get("peft_type") != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    problems += [
        f"{key} = {config[key]!r} is not supported"
        for key, neutral in _NEUTRAL.items()
        if key in config and config[key] not in neutral
    ]
    if config.get("init_lora_weights", True) not in _UNTOUCHED:
        problems.append(
            f"init_lora_weights = {config['init_lora_weights']!r} changed the base;"
            " save it with path_initial_model_for_weight_conversion"
        )
    if problems:
        raise InputError(f"{directory / CONFIG}: {'; '.join(problems)}")


def _alpha(config: Mapping[str, Any], module: str) -> float:
    """Look alpha up as PEFT does: a pattern matches the end of a module's name."""
    patterns: Mapping[str, float] = config.get("alpha_pattern") or {}
    for pattern, alpha in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return float(alpha)
    return float(config["lora_alpha"])


def _config(adapter: LoraAdapter) -> dict[str, Any]:
    spec = adapter.spec
    twice = 2 if spec.init in RESIDUAL else 1
    rank = spec.rank * twice
    modules = {c.module_name: adapter.pair(c.weight) for c in adapter.chosen}
    ranks = {m: p.a.shape[0] * twice for m, p in modules.items()}
    alphas = {
        m: p.scale * (math.sqrt(ranks[m]) if spec.rslora else ranks[m])
        for m, p in modules.items()
    }
    alpha = spec.alpha * (math.sqrt(twice) if spec.rslora else twice)
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {re.escape(m): r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {
            re.escape(m): a
            for m, a in alphas.items()
            if not math.isclose(a, alpha, rel_tol=1e-12)
        },
        "target_modules": _targets(modules, adapter.module_names),
        "lora_dropout": spec.dropout,
        "fan_in_fan_out": any(
            c.layout.transposed and c.kind == "linear" for c in adapter.chosen
        ),
        "bias": "none",
        "lora_bias": spec.bias,
        "use_rslora": spec.rslora,
        "use_dora": isinstance(spec, DoraSpec),
        "init_lora_weights": True,
    }


def _targets(chosen: Iterable[str], everything: Iterable[str]) -> list[str] | str:
    """Return last parts of names where these mean exactly the chosen modules, else a regular expression."""
    names = set(chosen)
    last = {n.rpartition(".")[2] for n in names}
    if {n for n in everything if n.rpartition(".")[2] in last} == names:
        return sorted(last)
    return "|".join(re.escape(n) for n in sorted(names))
