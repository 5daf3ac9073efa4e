"""How a run is followed: live bars on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field

from mgk_cli import console
from mgk_cli import formatting as fmt
from mgk_cli.event_lines import Event, EventLines, Line, drift, time_left, unit_of
from mgk_core.record.json_numbers import finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Progress, TaskID

    Sink = Callable[[Event], None]

STYLES = {
    "plain": "",
    "head": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
}
PLAIN_EVERY = 1.0  # seconds between two lines of steps where the output is no terminal
_STOPPING = b"\nstopping after this step; press Ctrl-C again to stop at once\n"


@contextlib.contextmanager
def following(*, quiet: bool, as_json: bool) -> Iterator[Sink]:
    """Give the sink that fits standard output, for the time of a run."""
    if as_json:
        yield _guarded(json_line)
    elif quiet:
        yield _guarded(lambda _: None)
    elif sys.stdout.isatty() and os.environ.get("TERM") != "dumb":
        with Live(console.make()) as live:
            yield _guarded(live)
    else:
        yield _guarded(Lines(console.make()))


def _guarded(sink: Sink) -> Sink:
    """Answer a signal without touching buffered streams: the handler may stand in the middle of a write.

    Where the terminal has gone, what follows is told to nobody, and the work goes on to its checkpoint.
    """
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True

    def guarded(event: Event) -> None:
        if event["event"] == "stopping":
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING)
        elif not gone:
            with console.terminal_may_go(leave):
                sink(event)

    return guarded


def json_line(event: Event) -> None:
    """Print one event as one line of JSON."""
    with console.pipe_may_close():
        print(json.dumps(finite(event), ensure_ascii=False, default=str))


def say(to: Console, said: Line) -> None:
    """Print one line with its tone, wrapped under its indent."""
    from rich.padding import Padding
    from rich.text import Text

    to.print(
        Padding(Text(said.text, style=STYLES[said.tone]), (0, 0, 0, said.indent), expand=False)
    )


@define
class Pace:
    """Steps per second since the phase's first figures."""

    phase: str = ""
    since: float = 0.0
    step: int = 0
    begun: float = 0.0

    def __call__(self, event: Event) -> float | None:
        """Take a step event; None until there is something to go by."""
        now = time.monotonic()
        if event["phase"] != self.phase or event["step"] < self.step:
            self.phase, self.since, self.step = event["phase"], now, event["step"]
            own = event["step"] / event["seconds"] if event["seconds"] > 0 else None
            return own if event["step"] <= event["steps"] else None
        gone = now - self.since
        return (
            (event["step"] - self.step) / gone if gone > 0 and event["step"] > self.step else None
        )


@define
class Lines:
    """Plain lines for logs and pipes."""

    console: Console
    event_lines: EventLines = field(factory=EventLines)
    _told: float = 0.0
    _pace: Pace = field(factory=Pace)
    _drift: str = ""

    def __call__(self, event: Event) -> None:
        """Take one event."""
        for said in self.event_lines(event):
            say(self.console, said)
        if event["event"] == "step":
            self._step(event)
        elif event["event"] == "drift":
            self._drift = drift(event)
        elif event["event"] == "phase":
            self._drift = ""

    def _step(self, event: Event) -> None:
        pace = self._pace(event)
        now = time.monotonic()
        if now - self._told < PLAIN_EVERY and event["step"] < event["steps"]:
            return
        self._told = now
        shown = [*figures(event, pace), *filter(None, [self._drift])]
        say(self.console, Line(f"step {event['step']}/{event['steps']}  {'  '.join(shown)}", "dim"))


def figures(event: Event, pace: float | None) -> list[str]:
    """Return loss, rate, memory and time left of a step event."""
    memory = fmt.size(event.get("cuda_allocated", event.get("rss")))
    left = fmt.clock(time_left(event, pace))
    return [
        f"loss {fmt.number(event['loss'])}",
        fmt.rate(event["per_second"], unit_of(event)),
        memory,
        f"{left} left",
    ]


class Live:
    """A bar for the phase in training, a spinner for everything else; what is done scrolls up as lines."""

    def __init__(self, to: Console) -> None:
        self.console, self.event_lines, self.pace = to, EventLines(), Pace()
        self.progress = _bars(to)
        self.task: TaskID | None = None
        self.alarmed = False

    def __enter__(self) -> Self:
        self.progress.start()
        self._begin("loading")
        return self

    def __exit__(self, *_: object) -> None:
        with console.terminal_may_go():
            self._end()
            self.progress.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        kind = event["event"]
        if kind == "part":
            self._part(event["part"])
        elif kind == "step":
            self._step(event)
        elif kind in ("drift", "alarm") and self.task is not None:
            self.alarmed = self.alarmed or kind == "alarm"
            self.progress.update(self.task, alarm=f"{'⚠ ' if self.alarmed else ''}{drift(event)}")
        elif kind == "phase":
            self.alarmed = False
        for said in self.event_lines(event):
            say(self.console, said)

    def _part(self, part: str) -> None:
        words_of = {
            "load": "loading",
            "evaluation": "scoring",
            "merge": "merging",
            "save": "saving",
            "attach": "attaching",
        }
        self._begin(words_of.get(part, part))

    def _begin(self, what: str) -> None:
        self._end()
        self.task = self.progress.add_task(what, total=None, figures="", alarm="", begun=what)

    def _end(self) -> None:
        if self.task is not None:
            self.progress.remove_task(self.task)
            self.task = None

    def _step(self, event: Event) -> None:
        name = fmt.clean(event["phase"])
        if self.task is None or self.progress.tasks[-1].fields.get("begun") != name:
            self._end()
            self.task = self.progress.add_task(
                name, total=event["steps"], figures="", alarm="", begun=name
            )
        shown = "  ".join(figures(event, self.pace(event)))
        self.progress.update(
            self.task, completed=event["step"], total=event["steps"], figures=shown
        )


def _bars(to: Console) -> Progress:
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
        """No bar where there is nothing to count."""

        def render(self, task: Task) -> Any:
            return Text("") if task.total is None else super().render(task)

    class Count(MofNCompleteColumn):
        """Steps done, or the time that something without steps has taken so far."""

        def render(self, task: Task) -> Text:
            return TimeElapsedColumn().render(task) if task.total is None else super().render(task)

    columns: list[Any] = [
        SpinnerColumn(),
        TextColumn(
            "{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=24)
        ),
        Bar(bar_width=None, table_column=Column(ratio=1, min_width=4)),
        Count(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
        TextColumn(
            "{task.fields[alarm]}", style="yellow", markup=False, table_column=Column(no_wrap=True)
        ),
    ]
    return Progress(*columns, console=to, expand=True, refresh_per_second=8, transient=True)
