"""mgk: progressive LoRA training, as a framework of plugins.

Importing this package imports neither torch nor a plugin; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mgk_core import __version__

if TYPE_CHECKING:
    from mgk_core.contract.hookspecs import HOOK_API_VERSION, hookimpl
    from mgk_core.contract.pipeline import Phase, Pipeline
    from mgk_core.contract.specs import Spec, SpecRegistry, option
    from mgk_core.run.api import (
        attach,
        detach,
        load_base,
        load_data,
        merge,
        pipeline,
        resolve,
        rollback,
        run,
    )
    from mgk_core.run.in_memory import PhaseResult, run_phase

_HOME = {
    "attach": "run.api",
    "detach": "run.api",
    "load_base": "run.api",
    "load_data": "run.api",
    "merge": "run.api",
    "PhaseResult": "run.in_memory",
    "run_phase": "run.in_memory",
    "rollback": "run.api",
    "run": "run.api",
    "resolve": "run.api",
    "pipeline": "run.api",
    "HOOK_API_VERSION": "contract.hookspecs",
    "hookimpl": "contract.hookspecs",
    "Phase": "contract.pipeline",
    "Pipeline": "contract.pipeline",
    "Spec": "contract.specs",
    "SpecRegistry": "contract.specs",
    "option": "contract.specs",
}

__all__ = [
    "HOOK_API_VERSION", "Phase", "PhaseResult", "Pipeline", "Spec", "SpecRegistry", "__version__", "attach", "detach",
    "hookimpl", "load_base", "load_data", "merge", "option", "pipeline", "resolve", "rollback", "run", "run_phase",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mgk' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mgk_core.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
