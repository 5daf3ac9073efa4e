"""Settings of the whole suite: hypothesis profiles and one thread, so that bits do not depend on the machine's load;
and what tests count: how many faults came out right, of how many.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import define
from hypothesis import HealthCheck, settings

_QUIET = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.function_scoped_fixture,
]

settings.register_profile(
    "fast",
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=_QUIET,
)
settings.register_profile(
    "thorough",
    max_examples=250,
    deadline=None,
    derandomize=True,
    suppress_health_check=_QUIET,
)
settings.load_profile(os.environ.get("MGK_HYPOTHESIS", "fast"))

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of the reference pipeline; tests that change anything take a copy."""
    from mgk_core.run.runner import run_pipeline

    out = tmp_path_factory.mktemp("runs") / "finished"
    run_pipeline("textmodel", out=out, overrides=["run.threads=1"])
    return out


@pytest.fixture(scope="session")
def half_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of the reference pipeline that was stopped after its first phase."""
    from mgk_core.run.runner import run_pipeline

    out = tmp_path_factory.mktemp("runs") / "half"
    run_pipeline("textmodel", out=out, overrides=["run.threads=1"], until="plain_text")
    return out


@define
class Count:
    """How many of a kind came out right, of how many that were tried. detail: which part of the kind."""

    kind: str
    detail: str
    asked: int
    right: int = 0


@pytest.fixture
def counted(request: pytest.FixtureRequest) -> Iterator[Callable[..., Count]]:
    """Count faults that are tried and come out right; the sums are printed at the end of the session."""
    made: list[Count] = []

    def begin(kind: str, asked: int, detail: str = "") -> Count:
        made.append(Count(kind, detail, asked))
        return made[-1]

    yield begin
    request.node.user_properties.extend(
        ("counted", [c.kind, c.detail, c.asked, c.right]) for c in made
    )


def _sums(reporter: Any) -> dict[tuple[str, str], list[int]]:
    """Return (kind, detail) → [asked, right] over all tests that counted, and kinds' sums under detail ""."""
    sums: dict[tuple[str, str], list[int]] = {}
    reports = [
        r
        for kind in reporter.stats.values()
        for r in kind
        if getattr(r, "when", "") == "teardown"
    ]
    for report in reports:
        for name, value in report.user_properties:
            kind, detail, asked, right = value if name == "counted" else ("", "", 0, 0)
            for key in {(kind, ""), (kind, detail)} if kind else ():
                total = sums.setdefault(key, [0, 0])
                total[0], total[1] = total[0] + asked, total[1] + right
    return sums


def _wanted(sums: dict[tuple[str, str], list[int]]) -> dict[str, int]:
    """Return kind → how many there must be. Where MGK_FAULTS asks for all of them, no kind may be missing."""
    wanted = {kind: asked for (kind, detail), (asked, _) in sums.items() if not detail}
    if "MGK_FAULTS" not in os.environ:
        return wanted
    least = {
        "kills resumed with equal digests": int(os.environ.get("MGK_KILLS", "20")),
        "power failures resumed with equal digests": 1,
        "files damaged, found and named": 1,
        "plugins that raise, named": 1,
        "bad inputs answered": 150,
        "bytes that the user gave, unchanged": 1,
    }
    return {
        kind: max(wanted.get(kind, 0), least.get(kind, 0)) for kind in [*least, *wanted]
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print what was counted, sums first."""
    sums = _sums(terminalreporter)
    if not _wanted(sums):
        return
    terminalreporter.section("counts")
    for kind, wanted in _wanted(sums).items():
        right = sums.get((kind, ""), [0, 0])[1]
        terminalreporter.write_line(
            f"{right:>9,} of {wanted:>9,}  {kind}{'' if right >= wanted else '  SHORT'}"
        )
        for (of, detail), (asked, fine) in sums.items():
            if of == kind and detail:
                terminalreporter.write_line(f"{fine:>11,} of {asked:>7,}    {detail}")
    asked, same = sums.get(("bytes that the user gave, unchanged", ""), [0, 0])
    if asked:
        terminalreporter.write_line(
            f"bytes changed in what the user gave: {asked - same:,}"
        )


def pytest_sessionfinish(session: pytest.Session) -> None:
    """End with an error where a count is short, whatever the tests said."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:  # one of several workers: who started them counts
        return
    sums = _sums(reporter)
    short = [
        kind
        for kind, wanted in _wanted(sums).items()
        if sums.get((kind, ""), [0, 0])[1] < wanted
    ]
    if short and not session.exitstatus and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
