"""An adapter's directory: its state, and its own format where it has one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mgk_core.contract.adapter import Adapter, Saves
from mgk_core.contract.files import read_json
from mgk_core.record.store import Store

STATE = "state.safetensors"
PEFT_CONFIG = "adapter_config.json"


def save_adapter(
    where: Path, adapter: Adapter, state: Mapping[str, Tensor], keys: Mapping[str, Any]
) -> None:
    """Write ``state``, and what the adapter saves itself. keys: see `name_base`."""
    Store(where).write_tensors(STATE, {k: v.cpu() for k, v in state.items()})
    if isinstance(adapter, Saves):
        adapter.save(where)
    name_base(where, keys)


def name_base(where: Path, keys: Mapping[str, Any]) -> None:
    """Fill ``keys`` into PEFT's configuration where the adapter wrote one and left them empty."""
    file = where / PEFT_CONFIG
    if not file.is_file():
        return
    table: dict[str, Any] = read_json(file)
    table.update({key: value for key, value in keys.items() if not table.get(key)})
    file.write_text(
        json.dumps(table, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
