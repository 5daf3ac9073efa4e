"""Progress output: a live bar on a terminal, plain lines elsewhere, JSON lines, or nothing."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

from mgk_cli import console
from mgk_cli import formatting as fmt
from mgk_cli.event_lines import Event, EventLines, Line
from mgk_cli.live_bar import make_bar
from mgk_cli.status import Status
from mgk_core.contract.json_numbers import finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import TaskID

    Sink = Callable[[Event], None]

STYLES = {
    "plain": "",
    "head": "bold",
    "dim": "dim",
    "good": "green",
    "warn": "yellow",
    "bad": "bold red",
}
LONGEST = 36  # cells of an activity's name beside the bar
HEARTBEAT = (
    30.0  # seconds between two progress lines where the output is not a terminal
)
JSON_EVERY = 1.0  # seconds between two progress events of one activity in JSON output
_STOPPING = {
    "signal": b"\nstopping after this step; press Ctrl-C again to stop at once\n",
    "time": b"\nthe time of --minutes is up; stopping after this step\n",
}


@contextlib.contextmanager
def following(*, quiet: bool, as_json: bool) -> Iterator[Sink]:
    """Give the sink for the events of a run that fits standard output."""
    if as_json:
        yield _guarded(_seldom(json_line))
    elif quiet:
        yield _guarded(lambda _: None)
    else:
        with _drawing(console.make(), "loading") as sink:
            yield _guarded(sink)


@contextlib.contextmanager
def waiting(what: str, *, silent: bool = False) -> Iterator[None]:
    """Show the progress of a command on standard error, so that its result stays clean.

    what: its name wherever no loop inside names itself. silent: show nothing.
    """
    if silent:
        yield
        return
    from mgk_core.contract.progress import activity, reporting_to

    with (
        _drawing(console.make(sys.stderr), what) as sink,
        reporting_to(_guarded(sink)),
        activity(what),
    ):
        yield


def _drawing(to: Console, what: str) -> AbstractContextManager[Sink]:
    """Return what draws on a console: bars on a terminal, else lines."""
    if to.file.isatty() and os.environ.get("TERM") != "dumb":
        return Live(to, what)
    return Lines(to, what)


def _guarded(sink: Sink) -> Sink:
    """Answer a signal without buffered output, since its handler may interrupt a write.

    Once the terminal is closed, events are dropped and the work continues to its checkpoint.
    """
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True

    def guarded(event: Event) -> None:
        if event["event"] == "stopping":
            with contextlib.suppress(OSError):
                os.write(2, _STOPPING[event["why"]])
        elif not gone:
            with console.terminal_may_go(leave):
                sink(event)

    return guarded


def _seldom(sink: Sink) -> Sink:
    """Drop names of activities, steps, and progress that follows other progress too closely."""
    last = 0.0

    def limited(event: Event) -> None:
        nonlocal last
        if event["event"] == "activity" or event.get("what") == "training":
            return  # training has events of its own
        if event["event"] == "progress" and event["done"] < event["total"]:
            if time.monotonic() - last < JSON_EVERY:
                return
            last = time.monotonic()
        sink(event)

    return limited


def json_line(event: Event) -> None:
    """Print one event as one line of JSON."""
    with console.pipe_may_close():
        print(json.dumps(finite(event), ensure_ascii=False, default=str))


def print_line(to: Console, line: Line) -> None:
    """Print one line in its style, wrapped under its indent on a terminal.

    A file or pipe gets it whole: what reads it wraps for itself, or searches it.
    """
    from rich.padding import Padding
    from rich.text import Text

    if not to.is_terminal:
        to.print(Text(textwrap.indent(line.text, " " * line.indent)), soft_wrap=True)
        return
    content = Text(line.text, style=STYLES[line.tone])
    to.print(
        Padding(content, (0, 0, 0, line.indent), expand=False), no_wrap=not line.wrap
    )


class Lines:
    """Plain lines for logs and pipes, with a progress line now and then."""

    def __init__(self, to: Console, what: str, every: float | None = None) -> None:
        self.console, self.every = to, every or HEARTBEAT
        self.lines, self.status = EventLines(to.width), Status(what)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=1.0)

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.status.update(event)
        for line in self.lines(event):
            print_line(self.console, line)

    def _beat(self) -> None:
        # A thread of its own, so that a long call into another library is seen as well.
        while not self._ended.wait(self.every):
            with console.terminal_may_go():
                print_line(self.console, Line(self.status.line(), "dim"))


class Live:
    """A bar for what is being done; finished work scrolls up as lines."""

    def __init__(self, to: Console, what: str) -> None:
        self.console = to
        self.lines, self.status = EventLines(to.width), Status(what)
        self.bar = make_bar(to)
        self.task: TaskID | None = None
        self.shown: tuple[str, bool] = ("", False)

    def __enter__(self) -> Self:
        self.bar.start()
        self._draw()
        return self

    def __exit__(self, *_: object) -> None:
        with console.terminal_may_go():
            self._end()
            self.bar.stop()

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.status.update(event)
        for line in self.lines(event):
            print_line(self.console, line)
        self._draw()

    def _draw(self) -> None:
        status = self.status
        shown = (status.what, status.total is None)
        if self.task is None or shown != self.shown:
            # A new task, so that its elapsed time starts at zero.
            self._end()
            self.shown = shown
            name = fmt.shorten(status.what, LONGEST)
            self.task = self.bar.add_task(
                name, total=status.total, figures="", alarm=""
            )
        unit = (
            [status.unit] if status.unit != "steps" else []
        )  # they have figures enough
        figures = "  ".join(filter(None, [*unit, *status.figures]))
        fields: dict[str, Any] = {"figures": figures, "alarm": status.drift}
        self.bar.update(self.task, total=status.total, completed=status.done, **fields)

    def _end(self) -> None:
        if self.task is not None:
            self.bar.remove_task(self.task)
            self.task = None
