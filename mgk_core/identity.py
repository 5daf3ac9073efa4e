"""What a run is of: the things that must not change under it between two processes."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mgk_core.errors import InputError
from mgk_core.render import as_table
from mgk_core.session import Session

_LOOSE = ("phases",)


def identity_of(session: Session) -> dict[str, str]:
    """Return key → value of everything that resume compares; flat, so that each can be named."""
    found: dict[str, str] = {"base": session.ledger.base}
    found |= {f"config.{k}": v for k, v in _flat(as_table(session.config)).items()}
    for phase, data in zip(session.config.phases, session.data, strict=True):
        found[f"data.{phase.name}"] = data.train.digest
        for probe in data.probes:
            found[f"probe.{probe.name}.{probe.split}"] = probe.digest
    found["tokenizer"] = tokenizer_digest(session.bundle.tokenizer)
    environment = session.ledger.environment
    found |= {f"environment.{k}": str(environment[k]) for k in ("device", "threads", "capability", "machine")}
    found |= {f"library.{k}": v for k, v in environment["libraries"].items()}
    for info in session.hooks.plugins.infos:
        if info.error is None and not info.left_out:
            found[f"plugin.{info.name}"] = code_digest(info.module)
    return found


def compare(old: Mapping[str, str], new: Mapping[str, str], accept: Iterable[str]) -> list[str]:
    """Refuse what changed; return the accepted changes as sentences.

    accept: keys, or prefixes of keys (``library``, ``environment.threads``).
    """
    allowed = tuple(accept)
    changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    taken = [k for k in changed if any(k == a or k.startswith(a + ".") for a in allowed)]
    refused = [k for k in changed if k not in taken]
    if refused:
        lines = "\n".join(f"  {k}: was {old.get(k, 'absent')}, is {new.get(k, 'absent')}" for k in refused)
        raise InputError(
            f"the run cannot go on to the same end, because this has changed since it began:\n{lines}\n"
            f"put it back, or go on and have it recorded with --accept-change {refused[0]}"
        )
    return [f"{k}: was {old.get(k, 'absent')}, is {new.get(k, 'absent')}" for k in taken]


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of a tokenizer's vocabulary; ``"none"`` where there is none."""
    if tokenizer is None:
        return "none"
    if hasattr(tokenizer, "backend_tokenizer"):
        text = tokenizer.backend_tokenizer.to_str()
    elif hasattr(tokenizer, "get_vocab"):
        text = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        return type(tokenizer).__name__
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def code_digest(module: str) -> str:
    """Digest of a plugin's source files: those of the package that its module belongs to."""
    name = module.split(":", maxsplit=1)[0].split(".", maxsplit=1)[0]
    try:
        file = getattr(importlib.import_module(name), "__file__", None)
    except ImportError:
        return "unknown"
    if file is None:
        return "unknown"
    path = Path(file)
    sources = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
    state = hashlib.blake2b(digest_size=16)
    for source in sources:
        state.update(source.name.encode() + b"\0" + source.read_bytes())
    return state.hexdigest()


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value, ensure_ascii=False)
    return flat
