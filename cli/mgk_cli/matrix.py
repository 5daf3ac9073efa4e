"""The retention matrix as a table: rows of R by probes, in blocks of columns that fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from mgk_cli import formatting as fmt
from mgk_cli.effects import Effects, effects_in

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

GAP = 2
FEW = 100  # items below which a score is shown with its interval
TAUGHT = "◂"
_SHADES = " ░▒▓█"
_BETTER, _WORSE = (
    (31, 111, 180),
    (200, 100, 20),
)  # blue and orange, which colour-blind readers can tell apart


@frozen
class Column:
    """One probe: heading lines, a score per row, closing cells. heat: per row, −1 … 1 or None.

    signs: what follows each score, its shade and the mark of the phase that teaches it. All signs of
    a column are equally wide, so that its scores are aligned.
    """

    heading: tuple[str, ...]
    scores: tuple[str, ...]
    signs: tuple[str, ...]
    taught: int | None
    heat: tuple[float | None, ...]
    closing: tuple[str, ...]

    @property
    def width(self) -> int:
        """Terminal cells the column needs."""
        from rich.cells import cell_len

        return max(
            map(
                cell_len,
                (
                    *self.heading,
                    *(s + self.signs[0] for s in (*self.scores, *self.closing)),
                ),
            )
        )

    def aligned(self, score: str, signs: str) -> str:
        """Return a score followed by its signs, as wide as the column."""
        from rich.cells import cell_len

        return " " * (self.width - cell_len(score + signs)) + score + signs


def matrix(
    table: Mapping[str, Any], *, width: int, heat: bool = False, colour: bool = True
) -> Iterator[RenderableType]:
    """Draw the matrix of retention.json and its legend. heat: shade cells by change vs the baseline."""
    from rich.cells import cell_len

    names = row_names(table)
    labels = ("gain in its phase", "gain kept")
    first = max(map(cell_len, (*names, *labels)))
    effects = effects_in(table)
    columns = [
        _column(table, effects, j, heat=heat, colour=colour)
        for j in range(len(table["probes"]))
    ]
    for block in _blocks(columns, width - first):
        yield _draw(names, labels, block, heat=heat and colour)
    for legend in (_signs(columns), _shading(columns, colour=colour), _gains(table)):
        if legend:
            yield _text("; ".join(legend), "dim")


def row_names(table: Mapping[str, Any]) -> list[str]:
    """Return the names of the rows with their marks; row 0 is the baseline."""
    names = []
    for i, row in enumerate(table["rows"]):
        name = "baseline" if i == 0 else row["name"]
        names.append(fmt.clean(f"{name} ({row['mark']})" if row["mark"] else name))
    return names


def _column(
    table: Mapping[str, Any], effects: Effects, j: int, *, heat: bool, colour: bool
) -> Column:
    probe = table["probes"][j]
    heats = tuple(_heat(table, j)) if heat else (None,) * len(table["rows"])
    shades = [_shade(h) if not colour else "" for h in heats]
    taught = taught_in(table, probe)
    marks = [
        "" if taught is None else f" {TAUGHT}" if i == taught else "  "
        for i in range(len(heats))
    ]
    return Column(
        heading=tuple(_heading(table, j)),
        scores=tuple(cell(table, i, j) for i in range(len(heats))),
        signs=tuple(
            shade + mark for shade, mark in zip(_even(shades), marks, strict=True)
        ),
        taught=taught,
        heat=heats,
        closing=(
            fmt.signed(table["gain"].get(probe["name"]), 4),
            effects.gain_kept(probe["name"]),
        ),
    )


def taught_in(table: Mapping[str, Any], probe: Mapping[str, Any]) -> int | None:
    """Return the row of a probe's phase; None for the base's probes and phases that have not run."""
    rows = [r["name"] for r in table["rows"]]
    return (
        rows.index(probe["phase"])
        if probe["phase"] in rows and probe["phase"] != "base"
        else None
    )


def cell(table: Mapping[str, Any], i: int, j: int) -> str:
    """Return one score with its standard error, or its 95 % interval if there are few items."""
    value, stderr, n = table["R"][i][j], table["stderr"][i][j], table["n"][i][j]
    if value is None or n is None or n >= FEW or "interval" not in table:
        return fmt.score(value, stderr)
    low, high = table["interval"][i][j]
    if not math.isfinite(low + high):  # a single item has no error
        return fmt.number(value)
    places = fmt.places(stderr or (high - low) / 4)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _heading(table: Mapping[str, Any], j: int) -> Iterator[str]:
    probe = table["probes"][j]
    yield fmt.clean(probe["name"])
    yield fmt.clean(probe["metric"]) + (" ↑" if probe["higher_is_better"] else " ↓")
    counts = sorted({row[j] for row in table["n"] if row[j] is not None})
    count = f"n {'–'.join(fmt.count(n) for n in counts)}" if counts else "not measured"
    yield (
        count
        if probe["chance"] is None
        else f"{count}, chance {fmt.number(probe['chance'], 3)}"
    )


def _heat(table: Mapping[str, Any], j: int) -> Iterator[float | None]:
    """Yield the change vs the baseline, positive is better, relative to the column's largest."""
    column = [row[j] for row in table["R"]]
    sign = 1.0 if table["probes"][j]["higher_is_better"] else -1.0
    zero = column[0] if column else None
    changes = [None if v is None or zero is None else sign * (v - zero) for v in column]
    largest = max((abs(c) for c in changes if c is not None), default=0.0)
    for change in changes:
        yield None if change is None else (change / largest if largest else 0.0)


def _shade(heat: float | None) -> str:
    """Return heat as characters, for terminals without colour."""
    if heat is None or round(abs(heat) * 4) == 0:
        return ""
    return f" {'+' if heat > 0 else '−'}{_SHADES[round(abs(heat) * 4)]}"


def _even(shades: Sequence[str]) -> list[str]:
    """Make the shades of a column equally wide."""
    return [shade.ljust(max(map(len, shades))) for shade in shades]


def explained(scores: str) -> list[str]:
    """Explain the notations of uncertainty that occur in scores written by `cell`."""
    return _there(
        ("± standard error", "±" in scores),
        (f"[a, b] 95 % interval, for fewer than {FEW} items", "[" in scores),
    )


def _there(*meanings: tuple[str, bool]) -> list[str]:
    """Return the explanations whose condition holds."""
    return [meaning for meaning, there in meanings if there]


def _signs(columns: Sequence[Column]) -> list[str]:
    """Explain the signs that occur in headings and scores."""
    headings = "".join(c.heading[1] for c in columns)
    return [
        *_there(
            (
                f"{TAUGHT} trained in this phase",
                any(c.taught is not None for c in columns),
            )
        ),
        *explained("".join(s for c in columns for s in c.scores)),
        *_there(
            ("↑ higher is better", "↑" in headings),
            ("↓ lower is better", "↓" in headings),
        ),
    ]


def _shading(columns: Sequence[Column], *, colour: bool) -> list[str]:
    """Explain the shades that occur."""
    steps = {round(h * 4) for c in columns for h in c.heat if h is not None}
    tones = {True: "blue" if colour else "+", False: "orange" if colour else "−"}
    there = [
        f"{tones[better]} {meaning}"
        for better, meaning in ((True, "better"), (False, "worse"))
        if any((s > 0) is better for s in steps if s)
    ]
    if not there:
        return []
    if colour:
        return [
            f"{', '.join(there)} than the baseline",
            "stronger colour: nearer to the largest change of the column",
        ]
    quarters = " ".join(_SHADES[i] for i in sorted({abs(s) for s in steps if s}))
    return [
        f"{', '.join(there)} than the baseline",
        f"{quarters} quarters of the column's largest change",
    ]


def _gains(table: Mapping[str, Any]) -> list[str]:
    """Explain the last two rows, if they have values."""
    gained = any(g is not None for g in table["gain"].values())
    kept = any(k is not None for k in table["gain_kept"].values())
    return _there(
        (
            "gain in its phase: change vs the baseline after the phase that trains it, + is better",
            gained,
        ),
        (
            "gain kept: share of that gain left in the last row, n.s. if the gain is not significant",
            kept,
        ),
    )


def _blocks(columns: Sequence[Column], room: int) -> Iterator[list[Column]]:
    block: list[Column] = []
    used = 0
    for column in columns:
        if block and used + GAP + column.width > room:
            yield block
            block, used = [], 0
        block.append(column)
        used += GAP + column.width
    if block:
        yield block


def _draw(
    names: Sequence[str], labels: Iterable[str], block: Sequence[Column], *, heat: bool
) -> Table:
    from rich.table import Table

    table = Table(
        box=None,
        padding=(0, GAP, 0, 0),
        pad_edge=False,
        show_header=True,
        header_style="",
    )
    table.add_column("")
    for column in block:
        table.add_column(
            _lines([column.aligned(h, "") for h in column.heading]), no_wrap=True
        )
    for i, name in enumerate(names):
        table.add_row(_text(name), *(_cell(c, i, heat=heat) for c in block))
    for k, label in enumerate(labels):
        table.add_row(
            _text(label, "dim"),
            *(
                _text(c.aligned(c.closing[k], " " * len(c.signs[0])), "dim")
                for c in block
            ),
        )
    return table


def _lines(heading: Sequence[str]) -> Text:
    from rich.text import Text

    text = Text(heading[0], style="bold")
    for further in heading[1:]:
        text.append(f"\n{further}", style="not bold dim")
    return text


def _cell(column: Column, row: int, *, heat: bool) -> Text:
    style = "bold" if row == column.taught else ""
    level = column.heat[row]
    if heat and level is not None:
        style += f" white on {tint(level)}"
    return _text(column.aligned(column.scores[row], column.signs[row]), style)


def tint(level: float) -> str:
    """Return a background for −1 … 1: orange for worse, dark grey for no change, blue for better."""
    end = _BETTER if level > 0 else _WORSE
    parts = (round(40 + (e - 40) * min(1.0, abs(level))) for e in end)
    return f"rgb({','.join(map(str, parts))})"


def _text(content: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(content, style=style)
