"""The conformance tests: what a plugin's author imports to show that the plugin is right.

Importing this package loads neither torch nor hypothesis; each name is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgk_core.testing.adapters import check_adapter
    from mgk_core.testing.check import check_plugin
    from mgk_core.testing.gates import check_gate
    from mgk_core.testing.laws import (
        Law,
        LawBroken,
        LawResult,
        NotApplicable,
        assert_hold,
    )
    from mgk_core.testing.models import check_model
    from mgk_core.testing.objectives import check_objective
    from mgk_core.testing.observers import check_observer
    from mgk_core.testing.optimizers import check_optimizer
    from mgk_core.testing.probes import check_evaluator
    from mgk_core.testing.readers import check_reader
    from mgk_core.testing.recoveries import check_recovery
    from mgk_core.testing.retention import check_retention
    from mgk_core.testing.rules import check_rule
    from mgk_core.testing.subject import Subject
    from mgk_core.testing.transforms import check_transform

_HOME = {
    "check_adapter": "adapters",
    "check_plugin": "check",
    "check_gate": "gates",
    "check_optimizer": "optimizers",
    "check_evaluator": "probes",
    "check_rule": "rules",
    "check_model": "models",
    "check_objective": "objectives",
    "check_observer": "observers",
    "check_reader": "readers",
    "check_recovery": "recoveries",
    "check_retention": "retention",
    "check_transform": "transforms",
    "Law": "laws",
    "LawBroken": "laws",
    "LawResult": "laws",
    "NotApplicable": "laws",
    "assert_hold": "laws",
    "Subject": "subject",
}

__all__ = [
    "Law", "LawBroken", "LawResult", "NotApplicable", "Subject", "assert_hold", "check_adapter",
    "check_evaluator", "check_gate", "check_model", "check_objective", "check_observer", "check_optimizer", "check_plugin",
    "check_reader", "check_recovery", "check_retention", "check_rule", "check_transform",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mgk_core.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mgk_core.testing.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
