"""mgk: progressive LoRA training, as a framework of plugins.

Importing this module imports neither torch nor a plugin; each name is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mgk_core.api import attach, detach, merge, pipeline, rollback, run
    from mgk_core.hookspecs import HOOK_API_VERSION, hookimpl
    from mgk_core.pipeline import Phase, Pipeline
    from mgk_core.specs import Spec, SpecRegistry, option

_HOME = {
    "attach": "api",
    "detach": "api",
    "merge": "api",
    "rollback": "api",
    "run": "api",
    "pipeline": "api",
    "HOOK_API_VERSION": "hookspecs",
    "hookimpl": "hookspecs",
    "Phase": "pipeline",
    "Pipeline": "pipeline",
    "Spec": "specs",
    "SpecRegistry": "specs",
    "option": "specs",
}

__all__ = [
    "HOOK_API_VERSION", "Phase", "Pipeline", "Spec", "SpecRegistry", "attach", "detach", "hookimpl",
    "merge", "option", "pipeline", "rollback", "run",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mgk_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mgk_core.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
