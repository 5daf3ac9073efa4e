"""Plain tables that fit the terminal by dropping optional columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from attrs import define, field

from mgk_cli.formatting import cells, clean, shorten

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

GAP = 2
LEAST = 8  # cells that are left of a shortened name


def text(content: str, style: str = "") -> Text:
    """Make literal text: no markup, no terminal control characters."""
    from rich.text import Text as RichText

    return RichText(clean(content, lines=True), style=style)


def whole(content: str, style: str = "") -> Text:
    """Make a line that is never wrapped: a path or a command to copy."""
    line = text(content, style)
    line.no_wrap, line.overflow = True, "ignore"
    return line


@define
class Column:
    """One column.

    :param spare: priority for dropping it on a narrow terminal, highest first; 0: never
    :param shrink: whether its cells may be shortened, if the table is too wide without spare ones
    """

    heading: str
    right: bool = False
    spare: int = 0
    shrink: bool = False
    cells: list[Text] = field(factory=list)

    @property
    def width(self) -> int:
        """Terminal cells the column needs."""
        return max(cells(self.heading), *(cells(c.plain) for c in self.cells), 0)

    def shorten(self, width: int) -> None:
        """Shorten the cells, but never below `LEAST`."""
        room = max(LEAST, width)
        self.cells = [text(shorten(c.plain, room), str(c.style)) for c in self.cells]


def fitted(columns: Sequence[Column], width: int) -> Table:
    """Draw columns of equal length; empty ones and spare ones that do not fit are dropped."""
    kept = [c for c in columns if any(cell.plain for cell in c.cells)]
    while room(kept) > width and any(c.spare for c in kept):
        kept.remove(max(kept, key=lambda c: c.spare))
    for column in kept:
        if column.shrink and room(kept) > width:
            column.shorten(column.width - (room(kept) - width))
    return _draw(kept)


def room(columns: Sequence[Column]) -> int:
    """Return the terminal cells that columns need side by side."""
    return sum(c.width + GAP for c in columns) - GAP


def aligned(rows: Iterable[Sequence[str]]) -> list[str]:
    """Return rows as lines of plain text: the first column to the left, the others to the right."""
    table = [list(row) for row in rows]
    widths = [max(map(cells, column)) for column in zip(*table, strict=True)]
    lines = []
    for first, *others in table:
        padded = [first + " " * (widths[0] - cells(first))]
        for text_, wide in zip(others, widths[1:], strict=True):
            padded.append(" " * (wide - cells(text_)) + text_)
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


def _draw(columns: Sequence[Column]) -> Table:
    from rich.table import Table as RichTable

    table = RichTable(
        box=None, padding=(0, GAP, 0, 0), pad_edge=False, header_style="dim"
    )
    for column in columns:
        table.add_column(
            text(column.heading), justify="right" if column.right else "left"
        )
    for row in zip(*(c.cells for c in columns), strict=True):
        table.add_row(*row)
    return table
