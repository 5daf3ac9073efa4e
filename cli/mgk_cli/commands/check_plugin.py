"""``mgk check-plugin``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mgk_cli.tables import Column

BROKEN = 2
RESULTS = {True: ("pass", "green"), False: ("FAIL", "bold red"), None: ("n/a", "dim")}


class Law(Protocol):
    """The result of one test. subject: what was tested. ok: None if the test does not apply."""

    law: str
    subject: str
    ok: bool | None
    detail: str


@click.command(
    "check-plugin",
    cls=Command,
    short_help="Run the conformance tests on a plugin.",
    epilog="Example: mgk check-plugin lora",
)
@click.argument("name")
@click.option(
    "--thorough",
    is_flag=True,
    help="Also test kinds of layers that the adapter itself does not take.",
)
@click.option(
    "--badge",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the result as JSON for shields.io's endpoint badge.",
)
@options.plugin_option
@options.json_option
def command(*, name: str, thorough: bool, badge: Path | None, as_json: bool) -> int:
    """Run the conformance tests of `mgk_core.testing` on the plugin NAME.

    Exits 2 if a test fails; its line names the failing case and by how much it is off.
    """
    import attrs

    from mgk_cli.console import line, make, show
    from mgk_cli.formatting import several
    from mgk_cli.listing import print_json
    from mgk_cli.progress import waiting

    check = _kit()
    with waiting(f"testing {name}", silent=as_json):
        found: Sequence[Any] = check(name, thorough=thorough)
    if badge is not None:
        from mgk_core.testing.badge import write_badge

        write_badge(badge, found)
    broken = [f for f in found if f.ok is False]
    if as_json:
        print_json([attrs.asdict(f) for f in found])
    else:
        show(*_drawn(found, make().width))
        passed = sum(f.ok is True for f in found)
        total = several(passed + len(broken), "test")
        if broken:
            line(f"{len(broken)} of {total} failed")
        else:
            line(f"all {total} passed" if passed else "no test applies to this plugin")
    return BROKEN if broken else 0


def _kit() -> Any:
    """Return the kit's `check_plugin`; it needs hypothesis, which may not be installed."""
    from mgk_core.contract.errors import EnvironmentFault

    try:
        from mgk_core import testing
    except ImportError as error:
        raise EnvironmentFault(
            f"the conformance kit cannot be loaded: {error}; pip install hypothesis"
        ) from None
    check = getattr(testing, "check_plugin", None)
    if check is None:
        raise EnvironmentFault(
            "this version of mgk has no conformance kit (mgk_core.testing.check_plugin); upgrade mgk"
        )
    return check


def _drawn(found: Sequence[Law], width: int) -> Iterator[RenderableType]:
    """Draw the table. If it is too wide, details of failures and skipped tests go below it."""
    from mgk_cli.tables import fitted, room, text

    columns = _columns(found)
    if room(columns) <= width:
        yield fitted(columns, width)
        return
    columns[-1].cells = [text(row.detail if row.ok else "") for row in found]
    yield fitted(columns, width)
    for row in found:
        if row.detail and not row.ok:
            yield text(f"{row.law}, {row.subject}: {row.detail}", RESULTS[row.ok][1])


def _columns(found: Sequence[Law]) -> list[Column]:
    from mgk_cli.tables import Column, text

    columns = [
        Column("test"),
        Column("subject"),
        Column("result"),
        Column("detail", spare=1),
    ]
    for row in found:
        cells = (
            text(row.law),
            text(row.subject),
            text(*RESULTS[row.ok]),
            text(row.detail),
        )
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    return columns
