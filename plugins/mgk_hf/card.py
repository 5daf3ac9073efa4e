"""What a derived model's card inherits from its base: name, licence, task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgk_hf.licence import is_gemma

GEMMA_LICENCE = "gemma"
"""The hub's name of the Gemma Terms of Use."""

_HANDED_ON = ("license", "license_name", "license_link", "language")


def metadata(model: Any, source: Path | None, *, multimodal: bool) -> dict[str, Any]:
    """Return the hub metadata of a derived model, as far as the base provides it."""
    config = model.config
    found = {
        key: value
        for key, value in _card(source).items()
        if key in _HANDED_ON and value
    }
    if "license" not in found and is_gemma(str(getattr(config, "model_type", ""))):
        found["license"] = GEMMA_LICENCE
    name = str(getattr(config, "_name_or_path", "") or "")
    on_the_hub = bool(name) and not Path(name).exists() and name.count("/") == 1
    if on_the_hub:
        found |= {"base_model": name, "base_model_relation": "finetune"}
    task = "image-text-to-text" if multimodal else "text-generation"
    return {**found, "library_name": "transformers", "pipeline_tag": task}


def _card(source: Path | None) -> dict[str, Any]:
    """Return the metadata of the base's own card; empty where there is none that can be read."""
    if source is None or not (source / "README.md").is_file():
        return {}
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(source / "README.md")
    except Exception:  # noqa: BLE001 - a card is text that anyone wrote; without one nothing is claimed
        return {}
    return dict(found) if isinstance(found, dict) else {}
