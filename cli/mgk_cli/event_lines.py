"""What each event of a run is in fmt. Nothing is said that no event carried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import define, field, frozen

from mgk_cli import formatting as fmt

Tone = Literal["plain", "head", "dim", "good", "warn", "bad"]
Event = Mapping[str, Any]


@frozen
class Line:
    """One line, and how it is meant."""

    text: str
    tone: Tone = "plain"
    indent: int = 2


@define
class EventLines:
    """Turns events into lines; remembers what the next ones refer to."""

    phases: int = 0
    first: Event | None = None
    last: Event | None = None
    row: dict[str, float] = field(factory=dict)
    alarms: int = 0

    def __call__(self, event: Event) -> Iterator[Line]:
        """Yield the lines that say one event; most events have one or none."""
        said = getattr(self, f"_{event['event']}", None)
        if said is not None:
            yield from said(event)

    def trained(self) -> Iterator[Line]:
        """Yield a line on the training that just ended, if any."""
        first, last = self.first, self.last
        self.first = self.last = None
        if first is None or last is None:
            return
        memory = fmt.size(last.get("cuda_peak", last.get("rss_peak")))
        loss = f"loss {fmt.number(first['loss'])} → {fmt.number(last['loss'])}"
        pace = fmt.rate(last.get("per_second"), unit_of(last))
        yield Line(f"trained {fmt.several(last['step'], 'step')}: {loss}, {pace}, peak {memory}")
        if self.alarms > 1:
            yield Line(f"{self.alarms} alarms in all", "warn")
        self.alarms = 0

    def _load(self, event: Event) -> Iterator[Line]:
        if event["what"] == "base":
            yield Line(f"base {fmt.clean(event['type'])} on {fmt.clean(event['device'])}", indent=0)
        elif event["what"] == "data":
            self.phases += 1

    def _phase(self, event: Event) -> Iterator[Line]:
        if event["state"] == "enter":
            title = fmt.clean(event.get("title") or "")
            name = fmt.clean(event["phase"])
            head = f"phase {event['index'] + 1}/{max(self.phases, event['index'] + 1)} {name}"
            yield Line(f"{head}: {title}" if title else head, "head", 0)
        elif event.get("result") == "kept_apart":
            yield Line(
                "kept apart: the base stays as it was, and model/ will not contain this phase",
                "warn",
            )
        elif event.get("result") == "rolled_back":
            yield Line("rolled back: the base is as before the phase", "bad")

    def _step(self, event: Event) -> Iterator[Line]:
        if self.first is None:
            self.first = event
        self.last = event
        if event.get("skipped"):
            what = fmt.several(event["skipped"], "step")
            yield Line(
                f"{what} up to step {event['step']} left out: loss or gradient not finite", "warn"
            )

    def _dev(self, event: Event) -> Iterator[Line]:
        yield Line(f"dev loss {fmt.number(event['loss'])} at step {event['step']}", "dim")

    def _merge(self, event: Event) -> Iterator[Line]:
        yield from self.trained()
        scale = "" if event["scale"] == 1 else f" scaled by {fmt.number(event['scale'], 3)}"
        yield Line(f"merged ({fmt.clean(event['rule'])}{scale}): {cost(event)}")
        for warning in event["warnings"]:
            yield Line(fmt.clean(warning), "warn")

    def _verify(self, event: Event) -> Iterator[Line]:
        yield from self.trained()  # a rule may have it compared before it says what it merged
        said = f"merged against live: {event['error']:.2g}, rounding explains {event['bound']:.2g}"
        yield Line(said, "plain" if event["ok"] else "bad")

    def _evaluation(self, event: Event) -> Iterator[Line]:
        yield from self.trained()
        scores = {s["probe"]: s["value"] for s in event["scores"]}
        named = ", ".join(self._change(probe, value) for probe, value in scores.items())
        yield Line(
            f"scores of {fmt.clean(event['row'])}: {named}",
            indent=0 if event["row"] == "base" else 2,
        )
        self.row |= scores

    def _change(self, probe: str, value: float) -> str:
        before = f"{fmt.number(self.row[probe])} → " if probe in self.row else ""
        return f"{fmt.clean(probe)} {before}{fmt.number(value)}"

    def _gate(self, event: Event) -> Iterator[Line]:
        for note in event["notes"]:
            yield Line(fmt.clean(note), "warn")
        for refusal in event["refusals"]:
            yield Line(
                f"refused by {fmt.clean(refusal['gate'])}: {fmt.clean(refusal['reason'])}",
                "bad",
            )
        if event["accept"]:
            yield Line("the gates accept", "good")

    def _recover(self, event: Event) -> Iterator[Line]:
        yield Line(f"recovery: {fmt.clean(event['method'])} ({fmt.clean(event['action'])})", "warn")

    def _note(self, event: Event) -> Iterator[Line]:
        phase = event.get("phase")
        text = fmt.clean(event["text"])
        yield Line(f"{fmt.clean(phase)}: {text}" if phase else text, "dim")

    def _alarm(self, event: Event) -> Iterator[Line]:
        self.alarms += 1
        if self.alarms == 1:  # the next ones are on the progress line, and counted
            yield Line(f"alarm at step {event.get('step', '?')}: {alarm(event)}", "warn")


def cost(event: Event) -> str:
    """Say what rounding cost a merge."""
    kept = f"{fmt.share(event['kept'])} of the delta is in the weights"
    total = "" if _alike(event) else f" ({fmt.share(event['kept_total'])} with the residual)"
    moved = f"‖ΔW‖/‖W‖ {fmt.number(event['relative'], 2)}"
    return f"{kept}{total}, {moved}, largest rounding error {fmt.number(event['max_error'], 2)}"


def _alike(event: Event) -> bool:
    return abs(float(event["kept_total"]) - float(event["kept"])) < 5e-3


def alarm(event: Event) -> str:
    """Return an alarm's own text, or what it carries."""
    if "text" in event:
        return fmt.clean(event["text"])
    carried = {k: v for k, v in event.items() if k not in ("event", "phase")}
    return ", ".join(f"{fmt.clean(k)} {fmt.clean(v)}" for k, v in carried.items())


def drift(event: Event) -> str:
    """Return how far the model has moved so far, for the progress line."""
    if event.get("drift") is not None:
        return f"drift {100 * event['drift']:.2g} %"
    return f"‖ΔW‖/‖W‖ {100 * event['relative']:.2g} %"


def unit_of(event: Event) -> str:
    """Return what a step event counts."""
    return str(event.get("unit", "samples"))


def time_left(event: Event, pace: float | None) -> float | None:
    """Return seconds left in a phase. pace: steps per second."""
    return (event["steps"] - event["step"]) / pace if pace else None
