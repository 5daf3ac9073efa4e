"""PEFT's adapter directory, read and written through PEFT; what it leaves out is stored in a file next to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.errors import InputError
from mgk_peft.layer import PEFT_NAME

TENSORS, REST = "adapter_model.safetensors", "adapter_rest.safetensors"


def write(
    tuner: Any, config: Any, state: Mapping[str, Tensor], directory: Path
) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors``.

    state: the adapter's tensors; those that PEFT makes again from seeds go to a file of their own,
    since mgk promises the same bits on any machine.
    """
    from peft.utils import get_peft_model_state_dict

    shell = _shell(tuner, config)
    found = get_peft_model_state_dict(
        shell, adapter_name=PEFT_NAME, save_embedding_layers=False
    )
    save_file(_apart(found), directory / TENSORS, metadata={"format": "pt"})
    held = {(t.data_ptr(), t.shape) for t in found.values()}
    rest = {k: t for k, t in state.items() if (t.data_ptr(), t.shape) not in held}
    if rest:
        save_file(_apart(rest), directory / REST)
    config.inference_mode = True
    try:
        config.save_pretrained(str(directory))
    finally:
        config.inference_mode = False


def read_into(adapter: Adapter, tuner: Any, config: Any, directory: Path) -> None:
    """Load what `write` wrote for an adapter of the same configuration, bit for bit.

    :raises InputError: the files cannot be read or belong to another adapter
    """
    from peft.utils import set_peft_model_state_dict

    try:
        tensors = load_file(directory / TENSORS)
        rest = load_file(directory / REST) if (directory / REST).exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{directory}: not a readable PEFT adapter: {error}"
        ) from error
    try:
        result = set_peft_model_state_dict(
            _shell(tuner, config), tensors, adapter_name=PEFT_NAME
        )
    except (RuntimeError, KeyError, ValueError) as error:
        raise InputError(
            f"{directory / TENSORS}: belongs to another adapter: {error}"
        ) from error
    if result.unexpected_keys:
        raise InputError(
            f"{directory / TENSORS}: unknown {', '.join(result.unexpected_keys[:5])}"
        )
    adapter.load_state_dict({**adapter.state_dict(), **rest})


def _shell(tuner: Any, config: Any) -> nn.Module:
    """Return a module whose tensors have the names that they have in a `PeftModel`, which mgk does without."""
    shell = nn.Module()
    shell.base_model = tuner
    shell.__dict__["peft_config"] = {PEFT_NAME: config}
    return shell


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU: safetensors writes no two names of one memory."""
    return {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}
