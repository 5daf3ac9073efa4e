"""The conformance kit on ``full`` and ``rows``."""

import pytest

from mgk_core.host.manager import load_plugins
from mgk_core.testing.check import check_loaded
from mgk_core.testing.laws import assert_hold


@pytest.mark.slow
def test_every_law_of_adapters_holds():
    """Identity at attach, merged equals unmerged, detach, copies, ties and all the rest, for both types."""
    found = check_loaded(load_plugins(), "weights")
    assert {r.subject for r in found} == {"adapter full", "adapter rows"}
    assert sum(r.ok is True for r in found) >= 34
    assert_hold(found)
