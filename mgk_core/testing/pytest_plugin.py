"""``pytest --mgk NAME``: each conformance test of a plugin as a test of its own.

Registered by the entry point ``pytest11``, so it is loaded in every pytest run where mgk is
installed; without the option it does nothing, and it imports neither torch nor mgk_core before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mgk_core.testing.laws import LawResult


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("mgk", "conformance tests of mgk plugins")
    group.addoption(
        "--mgk",
        action="append",
        default=[],
        metavar="NAME",
        help="test the plugin NAME of mgk",
    )
    group.addoption(
        "--mgk-thorough",
        action="store_true",
        help="with --mgk: the tests that add little, too",
    )
    group.addoption(
        "--mgk-badge", metavar="FILE", help="with --mgk: write the result as a badge"
    )


def pytest_collection_modifyitems(
    session: pytest.Session, items: list[pytest.Item]
) -> None:
    """Append one item for each conformance test; they run when pytest gets to them."""
    for name in session.config.getoption("--mgk"):
        plugin: Any = ConformancePlugin.from_parent(
            session, name=f"mgk:{name}", plugin=name
        )
        items.extend(plugin.collect())


class ConformancePlugin(pytest.Collector):
    """One plugin of mgk; its tests run once, when its results are first asked for."""

    def __init__(self, *, plugin: str, **options: Any) -> None:
        super().__init__(**options)
        self.plugin = plugin

    def collect(self) -> Iterator[pytest.Item]:
        """Run the tests, and yield an item for each result."""
        from mgk_core.testing import check_plugin

        results = check_plugin(
            self.plugin, thorough=self.config.getoption("--mgk-thorough")
        )
        target = self.config.getoption("--mgk-badge")
        if target:
            from pathlib import Path

            from mgk_core.testing.badge import write_badge

            write_badge(Path(target), results)
        for result in results:
            name = f"{result.subject}: {result.law}"
            item: Any = ConformanceTest.from_parent(self, name=name, result=result)
            yield item


class ConformanceTest(pytest.Item):
    """One result, reported as a test."""

    def __init__(self, *, result: LawResult, **options: Any) -> None:
        super().__init__(**options)
        self.result = result

    def runtest(self) -> None:
        """Fail, skip or pass according to the result."""
        if self.result.ok is None:
            pytest.skip(self.result.detail)
        if not self.result.ok:
            pytest.fail(self.result.detail, pytrace=False)

    def reportinfo(self) -> tuple[Any, int | None, str]:
        """Return the name to report."""
        return self.path, None, self.name
