"""One HTML file of one run, or of several side by side. It asks nothing of any network."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from mgk_core.contract.cache import cache_directory
from mgk_core.contract.errors import EnvironmentFault
from mgk_report import compare, figures, story
from mgk_report.matrix import matrix
from mgk_report.record import Run, drawable, read

NAME = "report.html"


def write(runs: Sequence[Path], out: Path) -> Path:
    """Read run directories and write their report.

    :raises InputError: a directory is not a run directory
    :raises EnvironmentFault: the extra ``report`` is not installed
    """
    text = render([read(run) for run in runs])
    replace_text(out, text)
    return out


def replace_text(path: Path, text: str) -> None:
    """Write a file whole or not at all, also beside another process that writes the same one."""
    # A run removes what begins so when it resumes: a kill may leave the file behind.
    handle, name = tempfile.mkstemp(prefix=f".tmp-{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink()
        raise


def render(runs: Sequence[Run], *, live: bool = False) -> str:
    """Return the page. live: it reloads itself when the server that sent it asks for it (`mgk watch`)."""
    template = _environment().get_template("report.html")
    text: str = template.render(
        runs=[_view(run) for run in runs],
        settings=compare.settings(runs) if len(runs) > 1 else [],
        scores=compare.scores(runs) if len(runs) > 1 else [],
        title=", ".join(run.name for run in runs),
        live=live,
        library=_library(),
    )
    return text


def _view(run: Run) -> dict[str, Any]:
    seconds = run.seconds()
    return {
        "run": run,
        "headline": story.headline(run),
        "matrix": matrix(run),
        "phases": story.phases(run),
        "answers": story.answers(run),
        "costs": ("Time by part of the work", figures.times(drawable(seconds)))
        if seconds
        else None,
        "chain": _chain(run),
        "history": _history(run),
        "environment": _flat(run.ledger.get("environment", {})),
    }


def _chain(run: Run) -> list[tuple[str, str, str]]:
    """Return (phase, adapter digest, digest of the weights after it); the base first."""
    if not run.ledger:
        return []
    base = ("base", "", str(run.ledger.get("base", "")))
    phases = [
        (entry["phase"], entry["adapter"] or "", entry["merged"] or entry["result"])
        for entry in run.ledger.get("phases", ())
    ]
    return [base, *phases]


def _history(run: Run) -> list[str]:
    """Return what happened to the run besides its phases: starts, resumes, accepted changes."""
    shown = ("started", "resumed", "accepted", "forked", "finished")
    found = []
    for event in run.journal:
        if event["event"] in shown:
            detail = {
                k: v
                for k, v in event.items()
                if k in ("time", "after", "changes", "source")
            }
            found.append(
                " ".join([event["event"], *(f"{k} {v}" for k, v in detail.items())])
            )
    return found


def _flat(table: Any, prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", str(value)))
    return rows


@functools.cache
def _environment() -> Any:
    try:
        import jinja2
    except ImportError:
        raise _not_installed("jinja2") from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mgk_report"),
        autoescape=True,  # every value is escaped: labels and answers come from anywhere
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["embedded"] = embedded
    environment.globals["source"] = lambda name: (
        files("mgk_report") / "templates" / name
    ).read_text()
    return environment


def embedded(value: Any) -> Any:
    """Return JSON that can be put between script tags: no text in it can end the element."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    for character, code in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(character, code)
    return Markup(text)  # noqa: S704 - the three characters that HTML reads are gone


@functools.cache
def _library() -> Any:
    """Return Vega-Lite with what it needs, as one script (from vl-convert, which carries it)."""
    from markupsafe import Markup

    try:
        import vl_convert
    except ImportError:
        raise _not_installed("vl-convert-python") from None
    kept = cache_directory() / "report" / f"vega-{version('vl-convert-python')}.js"
    if kept.is_file():
        script = kept.read_text(encoding="utf-8")
    else:  # bundling takes seconds, so it is done once
        script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
        with suppress(OSError):  # a cache that cannot be written only costs time
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_text(kept, script)
    return Markup(script.replace("</script", "<\\/script"))  # noqa: S704 - the library's own code


def _not_installed(package: str) -> EnvironmentFault:
    return EnvironmentFault(
        f"a report needs {package}; install it: pip install 'mgk[report]'"
    )
