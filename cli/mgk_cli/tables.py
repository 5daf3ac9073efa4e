"""Plain tables that fit the terminal: what can be spared goes first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from mgk_cli.formatting import clean

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

GAP = 2


def text(content: str, style: str = "") -> Text:
    """Make a line of text that is taken as it is: no markup, nothing that steers a terminal."""
    from rich.text import Text as RichText

    return RichText(clean(content, lines=True), style=style)


def whole(content: str, style: str = "") -> Text:
    """Make a line that is never broken: a path or a command, to be copied."""
    line = text(content, style)
    line.no_wrap, line.overflow = True, "ignore"
    return line


@define
class Column:
    """One column. spare: it is left out where the terminal is narrow, the highest first; 0: never."""

    heading: str
    right: bool = False
    spare: int = 0
    cells: list[Text] = field(factory=list)

    @property
    def width(self) -> int:
        """Terminal cells that the column needs."""
        from rich.cells import cell_len

        lines = [
            *self.heading.split("\n"),
            *(line for c in self.cells for line in c.plain.split("\n")),
        ]
        return max(map(cell_len, lines))


def fitted(columns: Sequence[Column], width: int) -> Table:
    """Draw columns of equal length; spare ones that do not fit, and empty ones, are left out."""
    kept = [c for c in columns if c.heading or any(cell.plain for cell in c.cells)]
    kept = [c for c in kept if any(cell.plain for cell in c.cells)]
    while room(kept) > width and any(c.spare for c in kept):
        kept.remove(max(kept, key=lambda c: c.spare))
    return _draw(kept)


def room(columns: Sequence[Column]) -> int:
    """Return the terminal cells that columns need beside each other."""
    return sum(c.width + GAP for c in columns) - GAP


def _draw(columns: Sequence[Column]) -> Table:
    from rich.table import Table as RichTable

    table = RichTable(box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(text(column.heading), justify="right" if column.right else "left")
    for row in zip(*(c.cells for c in columns), strict=True):
        table.add_row(*row)
    return table
