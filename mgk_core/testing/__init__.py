"""The conformance kit: what a plugin's author imports to prove the plugin right.

Importing this package loads neither torch nor hypothesis; each name is loaded when it is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgk_core.testing.adapters import check_adapter
    from mgk_core.testing.check import check_plugin
    from mgk_core.testing.laws import Law, LawBroken, LawResult, NotApplicable, assert_hold
    from mgk_core.testing.subject import Subject

_HOME = {
    "check_adapter": "adapters",
    "check_plugin": "check",
    "Law": "laws",
    "LawBroken": "laws",
    "LawResult": "laws",
    "NotApplicable": "laws",
    "assert_hold": "laws",
    "Subject": "subject",
}

__all__ = [
    "Law", "LawBroken", "LawResult", "NotApplicable", "Subject", "assert_hold", "check_adapter", "check_plugin",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'mgk_core.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mgk_core.testing.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
