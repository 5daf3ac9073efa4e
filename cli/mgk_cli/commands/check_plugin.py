"""``mgk check-plugin``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import click

from mgk_cli import options
from mgk_cli.lazy import Command

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mgk_cli.tables import Column

BROKEN = 2
RESULTS = {True: ("holds", "green"), False: ("broken", "bold red"), None: ("does not apply", "dim")}


class Law(Protocol):
    """What the kit says of one law. subject: what was held to it. ok: None where it does not apply."""

    law: str
    subject: str
    ok: bool | None
    detail: str


@click.command(
    "check-plugin",
    cls=Command,
    short_help="Hold a plugin to the laws of its kind.",
    epilog="Example: mgk check-plugin lora",
)
@click.argument("name")
@options.json_option
def command(*, name: str, as_json: bool) -> int:
    """Hold the installed plugin NAME to the laws of `mgk_core.testing`, and print a table.

    Exits 2 where a law is broken; the line says on which case, and by how much.
    """
    import attrs

    from mgk_cli.console import line, make, show
    from mgk_cli.formatting import several
    from mgk_cli.listing import print_json

    found: Sequence[Any] = _kit()(name)
    broken = [f for f in found if f.ok is False]
    if as_json:
        print_json([attrs.asdict(f) for f in found])
    else:
        show(*_drawn(found, make().width))
        held = sum(f.ok is True for f in found)
        whole = f"all {several(held, 'law')} hold" if held else "no law applies"
        line(f"{several(len(broken), 'law')} broken" if broken else whole)
    return BROKEN if broken else 0


def _kit() -> Any:
    """Return the kit's `check_plugin`; it needs hypothesis, which a slim installation may lack."""
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
            "this mgk has no conformance kit (mgk_core.testing.check_plugin); install a newer release"
        )
    return check


def _drawn(found: Sequence[Law], width: int) -> Iterator[RenderableType]:
    """Draw the table. Where it is wider than the terminal, what is broken or does not apply is explained below it."""
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

    columns = [Column("law"), Column("on"), Column("result"), Column("detail", spare=1)]
    for row in found:
        cells = (text(row.law), text(row.subject), text(*RESULTS[row.ok]), text(row.detail))
        for column, cell in zip(columns, cells, strict=True):
            column.cells.append(cell)
    return columns
