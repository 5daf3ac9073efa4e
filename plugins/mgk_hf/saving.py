"""Writing a model as its own ecosystem reads it, with the licence that goes with it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import StoreError
from mgk_hf.licence import keep
from mgk_hf.quantized import forget_quantizer, is_quantized


def save(
    model: Any,
    tokenizer: Any,
    directory: Path,
    *,
    source: Path | None,
    notice: str,
    stops: Sequence[int] = (),
) -> None:
    """Write weights (safetensors), configuration, tokenizer and licence files.

    The tokenizer carries the chat template of the run; the generation configuration lists
    ``stops``, every token at which an answer ends.

    Attached adapters are not written: the directory holds the current base. Every tensor
    keeps its bits; the configuration names the widest dtype among them, so that a reader that
    asks for ``dtype="auto"`` loses nothing.

    :raises StoreError: the directory cannot be written
    """
    if getattr(model, "hf_quantizer", None) is not None and not is_quantized(model):
        forget_quantizer(model)
    state = {name: tensor.detach() for name, tensor in base_state_dict(model).items()}
    dtypes = {t.dtype for t in state.values() if t.is_floating_point()}
    widest = max(dtypes, key=lambda d: torch.finfo(d).bits, default=torch.float32)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(str(directory), state_dict=state)
        if stops:
            name_stops(directory / "generation_config.json", stops)
        _name_dtype(directory / "config.json", str(widest).removeprefix("torch."))
        if tokenizer is not None:
            tokenizer.save_pretrained(str(directory))
        keep(source, directory, notice)
    except OSError as error:
        raise StoreError(f"cannot write the model to {directory}: {error}") from error


def name_stops(file: Path, stops: Sequence[int]) -> None:
    """Write the tokens at which generation ends, the base's own first."""
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found["eos_token_id"] = stops[0] if len(stops) == 1 else list(stops)
    file.write_text(
        json.dumps(found, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def _name_dtype(file: Path, dtype: str) -> None:
    """Write the dtype into a saved configuration: transformers names that of the first parameter."""
    config = json.loads(file.read_text(encoding="utf-8"))
    for part in (
        config,
        *(v for v in config.values() if isinstance(v, dict) and "dtype" in v),
    ):
        part["dtype"] = dtype
    file.write_text(
        json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n",
        encoding="utf-8",
    )
