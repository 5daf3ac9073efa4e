"""What the tests of mgk_bench share."""

from __future__ import annotations

import pytest

from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """Return the hooks of all installed plugins."""
    return Hooks(load_plugins())
