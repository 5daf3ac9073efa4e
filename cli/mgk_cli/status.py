"""What a command is doing at the moment: its name, how far it is, and the time left."""

from __future__ import annotations

import time

from attrs import define, field

from mgk_cli import formatting as fmt
from mgk_cli.event_lines import Event, drift, unit_of

PARTS = {
    "load": "loading",
    "statistics": "collecting statistics",
    "attach": "attaching the adapter",
    "checkpoint": "writing a checkpoint",
    "merge": "merging",
    "evaluation": "scoring",
    "save": "saving the model",
}


@define
class Pace:
    """Steps per second since this process began the phase."""

    phase: str = ""
    since: float = 0.0
    step: int = 0

    def __call__(self, event: Event) -> float | None:
        """Take a step event and return the pace, None if there is too little to go by."""
        now = time.monotonic()
        if event["phase"] != self.phase or event["step"] < self.step:
            self.phase, self.since, self.step = event["phase"], now, event["step"]
            return event["step"] / event["seconds"] if event["seconds"] > 0 else None
        elapsed, steps = now - self.since, event["step"] - self.step
        return steps / elapsed if elapsed > 0 and steps > 0 else None


@define
class Status:
    """The current activity. total: None while its end is not known; figures: beside the count."""

    what: str
    phase: str = ""
    since: float = field(factory=time.monotonic)
    done: int = 0
    total: int | None = None
    unit: str = ""
    figures: list[str] = field(factory=list)
    drift: str = ""
    alarmed: bool = False
    pace: Pace = field(factory=Pace)

    def update(self, event: Event) -> None:
        """Take one event."""
        take = getattr(self, f"_{event['event']}", None)
        if take is not None:
            take(event)

    def line(self) -> str:
        """Return the status as one line for logs."""
        if self.total is None:
            return f"{self.what}  {fmt.clock(time.monotonic() - self.since)} so far"
        count = (
            f"{self.what}  {fmt.count(self.done)}/{fmt.count(self.total)} {self.unit}"
        )
        return "  ".join(filter(None, [count, *self.figures, self.drift]))

    def _begin(self, what: str) -> None:
        self.what, self.since = what, time.monotonic()
        self.done, self.total, self.unit, self.figures = 0, None, "", []

    def _part(self, event: Event) -> None:
        self._activity({"what": event["part"]})
        self.drift = ""

    def _activity(self, event: Event) -> None:
        name = str(event["what"])
        self._begin(fmt.clean(PARTS.get(name, name)))

    def _phase(self, event: Event) -> None:
        self.alarmed, self.phase = False, fmt.clean(event["phase"])

    def _progress(self, event: Event) -> None:
        name = str(event["what"])
        what = self.phase if name == "training" else fmt.clean(PARTS.get(name, name))
        if event["done"] >= event["total"]:
            self._begin(what)  # what follows the loop has no known end
            return
        if what != self.what:
            self._begin(what)
        self.done, self.total, self.unit = event["done"], event["total"], event["unit"]
        if name == "training":
            return  # its figures come with the step events
        left = event["seconds"] / event["done"] * (event["total"] - event["done"])
        self.figures = [f"{fmt.clock(left)} left"]

    def _step(self, event: Event) -> None:
        name = fmt.clean(event["phase"])
        if self.what != name:
            self._begin(name)
        self.done, self.total, self.unit = event["step"], event["steps"], "steps"
        pace = self.pace(event)
        left = (event["steps"] - event["step"]) / pace if pace else None
        self.figures = [
            f"loss {fmt.number(event['loss'])}",
            fmt.rate(event["per_second"], unit_of(event)),
            fmt.size(event.get("cuda_allocated", event.get("rss"))),
            f"{fmt.clock(left)} left",
        ]

    def _drift(self, event: Event) -> None:
        self.drift = f"{'⚠ ' if self.alarmed else ''}{drift(event)}"

    def _alarm(self, event: Event) -> None:
        self.alarmed = True
        if "relative" in event or event.get("drift") is not None:
            self._drift(event)
