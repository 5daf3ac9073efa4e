"""From a spec to a bundle: the shipped bases, local directories, hub ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from mgk_core.errors import EnvironmentFault, InputError
from mgk_hf import gemma_q4, tiny
from mgk_hf.bundle import HfBundle
from mgk_hf.licence import notice_of
from mgk_hf.network import take_apart
from mgk_hf.precision import apply_policy, best_compute
from mgk_hf.specs import HfSpec


def build(spec: HfSpec, device: torch.device) -> HfBundle:
    """Load or build the base that ``spec.id`` names, by its policy of dtypes, on ``device``."""
    source: Path | None = None
    if spec.id == tiny.MODEL_ID:
        model, tokenizer = _tiny(spec)
    else:
        source = gemma_q4.prepare() if spec.id == gemma_q4.MODEL_ID else _local(spec.id)
        model, tokenizer = _pretrained(spec, str(source) if source else spec.id)
    _set_dtypes(model, spec, device)
    model.to(device)
    model.requires_grad_(False)
    if spec.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    network = take_apart(model)
    notice = notice_of(source, str(getattr(model.config, "model_type", "")))
    return HfBundle(network, tokenizer, device, notice, source, spec.token_budget)


def _set_dtypes(model: Any, spec: HfSpec, device: torch.device) -> None:
    """On a CPU: fp32 masters, the vocabulary's table as stored. Elsewhere: as loaded."""
    compute: Any = best_compute(device) if spec.compute == "auto" else spec.compute
    named = spec.dtype in ("auto", "float32")
    apply_policy(model, compute, masters=torch.float32 if device.type == "cpu" and named else None)


def _local(name: str) -> Path | None:
    """Return the directory that a name means, or None where it can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"base.id: {path} holds no config.json; expected a model directory as transformers writes it")
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(
            f"base.id: {name!r}: no such directory, and no hub id (expected owner/name);"
            f" shipped: {gemma_q4.MODEL_ID}, {tiny.MODEL_ID}"
        )
    return None


def _pretrained(spec: HfSpec, where: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype: Any = "auto" if spec.dtype in ("auto", "float32") else getattr(torch, spec.dtype)
    attention = {} if spec.attention == "auto" else {"attn_implementation": spec.attention}
    common: dict[str, Any] = {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=dtype, use_safetensors=True, device_map=spec.device_map, **attention, **common
        )
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
    except OSError as error:
        raise EnvironmentFault(_why(where, error)) from error
    except ValueError as error:
        raise InputError(f"base.id: {where}: {error}") from error
    return model, tokenizer


def _why(where: str, error: OSError) -> str:
    text = str(error)
    if "gated" in text.lower() or "401" in text or "403" in text:
        return f"base.id: {where} is gated: accept its terms on its page and log in with a token that may read it"
    if "offline" in text.lower() or "connect" in text.lower() or "resolve" in text.lower():
        return f"base.id: {where} is not in the local cache and the hub cannot be reached; give a local directory instead"
    return f"base.id: {where}: cannot be loaded: {text.splitlines()[0]}"


def _tiny(spec: HfSpec) -> tuple[Any, Any]:
    tokenizer = tiny.tiny_tokenizer(_texts(spec.text))
    return tiny.tiny_model(len(tokenizer), spec.seed), tokenizer


def _texts(name: str) -> Iterator[str]:
    """Yield every string of a file of JSON lines, or the lines of a text file."""
    if name.startswith("package:"):
        package, _, rest = name.removeprefix("package:").partition("/")
        text = files(package).joinpath(rest).read_text(encoding="utf-8")
    else:
        text = Path(name).read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("{"):
            yield from (v for v in json.loads(line).values() if isinstance(v, str))
        else:
            yield line
