"""Rows in PEFT's format: its adapter type ``TRAINABLE_TOKENS``, written without PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file
from torch import Tensor

if TYPE_CHECKING:
    from mgk_weights.adapter import RowsAdapter

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def fits(adapter: RowsAdapter) -> bool:
    """Return whether PEFT's type is this adapter: it keeps every tie."""
    return not adapter.unties


def save_peft(adapter: RowsAdapter, directory: Path) -> None:
    """Write ``adapter`` so that ``PeftModel.from_pretrained`` loads it.

    PEFT's ``trainable_tokens_delta`` contains the new rows themselves, W + D.
    """
    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    ids: list[int] = []
    for name, delta in adapter.deltas.items():
        assert delta.ids is not None  # noqa: S101 - it is of rows
        rows = (delta.before + delta.values.detach()).cpu()
        for alias in (name, *delta.target.aliases):  # PEFT reads tied ends twice
            module = alias.removesuffix(".weight")
            tensors[f"base_model.model.{module}.trainable_tokens_delta"] = rows.clone()
        modules.append(name.removesuffix(".weight"))
        ids = delta.ids.tolist()
    config = {
        "peft_type": "TRAINABLE_TOKENS",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "init_weights": True,
        "target_modules": modules,
        "token_indices": ids,
    }
    save_file(tensors, directory / TENSORS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
