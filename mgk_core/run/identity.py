"""What a run is of: the things that must not change under it between two processes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mgk_core.config.render import as_table
from mgk_core.contract.errors import InputError
from mgk_core.contract.hookspecs import acts
from mgk_core.contract.settings import RunConfig
from mgk_core.contract.specs import Registered
from mgk_core.record.journal import Journal
from mgk_core.run.session import Session

_LISTED = 20  # changes in a message
_SHOWN = 200  # characters of a value in a message


def identity_of(session: Session) -> dict[str, str]:
    """Return key → value of everything that resume compares; flat, so that each can be named."""
    found: dict[str, str] = {"base": session.ledger.base}
    found |= {f"config.{k}": v for k, v in _flat(as_table(session.config)).items()}
    found.pop("config.run.track")  # the observers that it adds are in each phase
    for phase, data in zip(session.config.phases, session.data, strict=True):
        found[f"data.{phase.name}"] = data.train.digest
    for probe in session.probes:
        found[f"probe.{probe.name}.{probe.split}"] = probe.digest
    found["tokenizer"] = tokenizer_digest(session.bundle.tokenizer)
    environment = session.ledger.environment
    found |= {
        f"environment.{k}": str(environment[k])
        for k in ("device", "threads", "capability", "machine")
    }
    found |= {f"library.{k}": v for k, v in environment["libraries"].items()}
    registry = session.hooks.plugins.registry
    used = {claim.plugin for claim in registry if _names(session.config, claim)}
    used |= {registry.find("metric", probe.metric).plugin for probe in session.probes}
    for info in session.hooks.plugins.infos:
        if (
            info.error is None
            and not info.left_out
            and (info.name in used or _acts_unasked(info.hooks))
        ):
            found[f"plugin.{info.name}"] = code_digest(info.module)
    found["plugin.core"] = code_digest("mgk_core")
    return found


def recorded_threads(journal: Journal) -> int:
    """Return the threads that a run's journal records; 0 where the run has not started."""
    found = 0
    for event in journal.events:
        threads = event.get("identity", {}).get("environment.threads", "")
        found = int(threads) if str(threads).isdecimal() else found
    return found


def _names(config: RunConfig, claim: Registered) -> bool:
    """Whether a configuration uses a type that a plugin registered."""
    specs = [config.base, *config.probes.values()]
    specs += [spec for phase in config.phases for spec in phase.specs]
    return any(type(spec) is claim.cls for spec in specs)


def _acts_unasked(hooks: Iterable[str]) -> bool:
    """Whether a plugin may change what a run computes though no type of it is named."""
    return any(acts(h) for h in hooks)


def compare(
    old: Mapping[str, str], new: Mapping[str, str], accept: Iterable[str]
) -> list[str]:
    """Refuse what changed; return the accepted changes as sentences.

    accept: keys, or prefixes of keys (``library``, ``environment.threads``).
    """
    allowed = tuple(accept)
    changed = {
        k: _change(k, old, new)
        for k in sorted({*old, *new})
        if _value(k, old) != _value(k, new)
    }
    taken = [
        k for k in changed if any(k == a or k.startswith(a + ".") for a in allowed)
    ]
    refused = [k for k in changed if k not in taken]
    if refused:
        more = (
            [f"… and {len(refused) - _LISTED} more"] if len(refused) > _LISTED else []
        )
        lines = "\n".join(
            f"  {line}" for line in [*(changed[k] for k in refused[:_LISTED]), *more]
        )
        raise InputError(
            f"cannot resume reproducibly; these inputs changed since the run started:\n{lines}\n"
            f"restore them, or accept and record the changes with {' '.join(f'--accept-change {k}' for k in refused[:3])}"
        )
    return [changed[k] for k in taken]


def _value(key: str, values: Mapping[str, str]) -> str:
    return values.get(key, "absent")


def _change(key: str, old: Mapping[str, str], new: Mapping[str, str]) -> str:
    return f"{key}: was {_value(key, old):.{_SHOWN}}, is {_value(key, new):.{_SHOWN}}"


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
    found = importlib.util.find_spec(name)
    if found is None:
        return "unknown"
    folders = [Path(p) for p in found.submodule_search_locations or ()]
    files = [(p, p.relative_to(f).as_posix()) for f in folders for p in f.rglob("*.py")]
    if not files and found.origin is not None and Path(found.origin).is_file():
        files = [(Path(found.origin), name)]
    state = hashlib.blake2b(digest_size=16)
    for path, known_as in sorted(files, key=lambda f: f[1]):
        state.update(known_as.encode() + b"\0" + path.read_bytes() + b"\0")
    return state.hexdigest() if files else "unknown"


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = json.dumps(value, ensure_ascii=False)
    return flat
