"""What an adapter needs beside its tensors so that PEFT and transformers load it, and a check that they do."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mgk_hf.bars import quiet_peft
from mgk_hf.batch import IGNORED, TokenBatch, unpack

CAUSAL = "CAUSAL_LM"


def base_of(model: Any) -> str:
    """Return the directory or hub id that a model was loaded from; empty where there is none."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    # Path("") is the working directory, which no model was loaded from.
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def adapter_keys(model: Any) -> dict[str, Any]:
    """Return the keys of ``adapter_config.json`` that name the base and its class.

    PEFT finds the class by ``task_type`` where transformers has the model as a causal one, and by
    ``auto_mapping`` elsewhere.
    """
    from transformers import AutoModelForCausalLM

    keys: dict[str, Any] = {"base_model_name_or_path": base_of(model) or None}
    causal = AutoModelForCausalLM._model_mapping  # noqa: SLF001 - no public name
    kind = _plain_class(model)
    if type(model.config) in causal and causal[type(model.config)] is kind:
        return {**keys, "task_type": CAUSAL}
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return {**keys, "auto_mapping": mapping}


def can_check(model: Any) -> bool:
    """Return whether `exported_outputs` works: PEFT is installed and the base has a place."""
    return find_spec("peft") is not None and bool(base_of(model))


@torch.no_grad()
def exported_outputs(
    model: Any, directory: Path, batches: Iterable[TokenBatch], most: int
) -> list[Tensor]:
    """Load an adapter directory with PEFT alone and return what `HfBundle.outputs` would.

    Each sequence is run by itself through the loaded model: nothing of mgk takes part.

    :param model: for its device and dtype
    :param most: positions of each batch
    """
    device = model.get_input_embeddings().weight.device
    with quiet_peft():
        from peft import AutoPeftModel, AutoPeftModelForCausalLM

        causal = "task_type" in adapter_keys(model)
        loader = AutoPeftModelForCausalLM if causal else AutoPeftModel
        loaded = loader.from_pretrained(str(directory), dtype=_dtype(model, device))
    loaded = loaded.to(device).eval()
    return [_outputs(loaded, batch, most, device) for batch in batches]


def _dtype(model: Any, device: torch.device) -> torch.dtype:
    """Return the dtype to compare in: fp32 on a CPU, elsewhere that of the largest weights."""
    if device.type == "cpu":
        return torch.float32
    largest: Tensor = max(model.parameters(), key=torch.Tensor.numel)
    return largest.dtype


def _outputs(model: Any, batch: TokenBatch, most: int, device: torch.device) -> Tensor:
    """Return the first ``most`` rows of logits that predict a label, (positions, V) fp32."""
    rows: list[Tensor] = []
    learns = bool((batch.labels != IGNORED).any())
    for ids, labels in unpack(batch):
        logits = (
            model(input_ids=torch.tensor([list(ids)], device=device)).logits[0].float()
        )
        if learns:
            wanted = [i - 1 for i, label in enumerate(labels) if i and label != IGNORED]
            logits = logits[wanted]
        rows.append(logits)
    return torch.cat(rows)[:most]


def _plain_class(model: Any) -> type[Any]:
    """Return the class of transformers under what mgk's adapters make of it."""
    return next(
        c for c in type(model).__mro__ if c.__module__.startswith("transformers.")
    )
