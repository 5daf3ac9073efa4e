"""The bar on a terminal: a spinner with elapsed time until the end is known, then a bar."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def make_bar(to: Console) -> Progress:
    """Return a progress display whose tasks have the fields ``figures`` and ``alarm``."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        Task,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Column
    from rich.text import Text

    class Bar(BarColumn):
        """A bar for tasks with a known end."""

        def render(self, task: Task) -> Any:
            return Text("") if task.total is None else super().render(task)

    class Count(MofNCompleteColumn):
        """Items done, or elapsed time while the end is not known."""

        def render(self, task: Task) -> Text:
            return (
                TimeElapsedColumn().render(task)
                if task.total is None
                else super().render(task)
            )

    def fixed() -> Column:
        return Column(no_wrap=True)

    columns: list[Any] = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False, table_column=fixed()),
        Bar(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        Count(table_column=fixed()),
        TextColumn("{task.fields[figures]}", markup=False, table_column=fixed()),
        TextColumn(
            "{task.fields[alarm]}", style="yellow", markup=False, table_column=fixed()
        ),
    ]
    return Progress(
        *columns, console=to, expand=True, refresh_per_second=8, transient=True
    )
