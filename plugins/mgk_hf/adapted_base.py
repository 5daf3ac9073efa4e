"""A PEFT adapter's directory as a base: its own base is loaded, and the adapter merged into it first."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_core.contract.files import check_header
from mgk_core.model.digest import base_digest

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


@frozen
class AdapterDirectory:
    """A directory that PEFT wrote. base: directory or hub id of the model that it is for."""

    path: Path
    base: str
    revision: str | None

    @classmethod
    def at(cls, path: Path) -> AdapterDirectory | None:
        """Return what a directory holds; None where that is not an adapter.

        :raises InputError: it cannot be read, names no base, or holds a model as well
        """
        if not (path / CONFIG).is_file():
            return None
        if any(path.glob("model*.safetensors")):
            raise InputError(
                f"base.id: {path} holds a model and an adapter ({CONFIG}); expected one of them: remove"
                " the adapter's files if the weights have it merged"
            )
        try:
            table = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            base = table.get("base_model_name_or_path")
            revision = table.get("revision")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise InputError(
                f"base.id: {path / CONFIG} cannot be read: {error}; expected what PEFT writes"
            ) from error
        if not isinstance(base, str) or not base:
            raise InputError(
                f"base.id: {path} is a PEFT adapter that names no base; set base_model_name_or_path in"
                f" its {CONFIG}, or give the base and train on that"
            )
        if not (path / TENSORS).is_file():
            raise InputError(
                f"base.id: {path} is a PEFT adapter without {TENSORS}; expected safetensors, since mgk reads no pickles"
            )
        check_header(path / TENSORS)
        return cls(path, base, revision if isinstance(revision, str) else None)


def merged(model: Any, directory: AdapterDirectory) -> tuple[Any, dict[str, Any]]:
    """Merge an adapter into its base by PEFT; return the plain model and the ledger's entry.

    :raises EnvironmentFault: PEFT is not installed
    :raises InputError: PEFT cannot load the adapter on this base, or cannot merge it
    """
    if find_spec("peft") is None:
        raise EnvironmentFault(
            f"base.id: {directory.path} is a PEFT adapter; merging it needs PEFT: pip install 'mgk[peft]'"
        )
    from peft import PeftModel

    before = base_digest(model)
    name = model.config._name_or_path  # noqa: SLF001 - no public name
    try:
        adapted: Any = PeftModel.from_pretrained(model, str(directory.path))
        plain = adapted.merge_and_unload(safe_merge=True)
    except Exception as error:
        raise InputError(
            f"base.id: PEFT cannot merge {directory.path} into {directory.base}: {error}"
        ) from error
    plain.config._name_or_path = name  # noqa: SLF001
    after = base_digest(plain)
    if after == before:
        raise InputError(
            f"base.id: the adapter in {directory.path} changes no weight of {directory.base}; expected"
            " an adapter that was trained on this base"
        )
    entry = {
        "what": "adapter",
        "adapter": str(directory.path),
        "base": before,
        "prepared": after,
    }
    return plain, entry
