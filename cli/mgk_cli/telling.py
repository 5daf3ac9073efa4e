"""What each event of a run is in words. Nothing is said that no event carried."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import define, field, frozen

from mgk_cli import words

Tone = Literal["plain", "head", "dim", "good", "warn", "bad"]
Event = Mapping[str, Any]


@frozen
class Said:
    """One line, and how it is meant."""

    text: str
    tone: Tone = "plain"
    indent: int = 2


@define
class Teller:
    """Turns events into lines; remembers what the next ones refer to."""

    phases: int = 0
    first: Event | None = None
    last: Event | None = None
    row: dict[str, float] = field(factory=dict)
    alarms: int = 0

    def __call__(self, event: Event) -> Iterator[Said]:
        """Yield the lines that say one event; most events have one or none."""
        said = getattr(self, f"_{event['event']}", None)
        if said is not None:
            yield from said(event)

    def trained(self) -> Iterator[Said]:
        """Yield a line on the training that just ended, if any."""
        first, last = self.first, self.last
        self.first = self.last = None
        if first is None or last is None:
            return
        memory = words.size(last.get("cuda_peak", last.get("rss_peak")))
        loss = f"loss {words.number(first['loss'])} → {words.number(last['loss'])}"
        pace = words.rate(last.get("per_second"), unit_of(last))
        yield Said(f"trained {words.several(last['step'], 'step')}: {loss}, {pace}, peak {memory}")
        if self.alarms > 1:
            yield Said(f"{self.alarms} alarms in all", "warn")
        self.alarms = 0

    def _load(self, event: Event) -> Iterator[Said]:
        if event["what"] == "base":
            yield Said(
                f"base {words.clean(event['type'])} on {words.clean(event['device'])}", indent=0
            )
        elif event["what"] == "data":
            self.phases += 1

    def _phase(self, event: Event) -> Iterator[Said]:
        if event["state"] == "enter":
            title = words.clean(event.get("title") or "")
            name = words.clean(event["phase"])
            head = f"phase {event['index'] + 1}/{max(self.phases, event['index'] + 1)} {name}"
            yield Said(f"{head}: {title}" if title else head, "head", 0)
        elif event.get("result") == "kept_apart":
            yield Said(
                "kept apart: the base stays as it was, and model/ will not contain this phase",
                "warn",
            )
        elif event.get("result") == "rolled_back":
            yield Said("rolled back: the base is as before the phase", "bad")

    def _step(self, event: Event) -> Iterator[Said]:
        if self.first is None:
            self.first = event
        self.last = event
        if event.get("skipped"):
            what = words.several(event["skipped"], "step")
            yield Said(
                f"{what} up to step {event['step']} left out: loss or gradient not finite", "warn"
            )

    def _dev(self, event: Event) -> Iterator[Said]:
        yield Said(f"dev loss {words.number(event['loss'])} at step {event['step']}", "dim")

    def _merge(self, event: Event) -> Iterator[Said]:
        yield from self.trained()
        scale = "" if event["scale"] == 1 else f" scaled by {words.number(event['scale'], 3)}"
        yield Said(f"merged ({words.clean(event['rule'])}{scale}): {cost(event)}")
        for warning in event["warnings"]:
            yield Said(words.clean(warning), "warn")

    def _verify(self, event: Event) -> Iterator[Said]:
        yield from self.trained()  # a rule may have it compared before it says what it merged
        said = f"merged against live: {event['error']:.2g}, rounding explains {event['bound']:.2g}"
        yield Said(said, "plain" if event["ok"] else "bad")

    def _evaluation(self, event: Event) -> Iterator[Said]:
        yield from self.trained()
        scores = {s["probe"]: s["value"] for s in event["scores"]}
        named = ", ".join(self._change(probe, value) for probe, value in scores.items())
        yield Said(
            f"scores of {words.clean(event['row'])}: {named}",
            indent=0 if event["row"] == "base" else 2,
        )
        self.row |= scores

    def _change(self, probe: str, value: float) -> str:
        before = f"{words.number(self.row[probe])} → " if probe in self.row else ""
        return f"{words.clean(probe)} {before}{words.number(value)}"

    def _gate(self, event: Event) -> Iterator[Said]:
        for note in event["notes"]:
            yield Said(words.clean(note), "warn")
        for refusal in event["refusals"]:
            yield Said(
                f"refused by {words.clean(refusal['gate'])}: {words.clean(refusal['reason'])}",
                "bad",
            )
        if event["accept"]:
            yield Said("the gates accept", "good")

    def _recover(self, event: Event) -> Iterator[Said]:
        yield Said(
            f"recovery: {words.clean(event['method'])} ({words.clean(event['action'])})", "warn"
        )

    def _note(self, event: Event) -> Iterator[Said]:
        phase = event.get("phase")
        text = words.clean(event["text"])
        yield Said(f"{words.clean(phase)}: {text}" if phase else text, "dim")

    def _alarm(self, event: Event) -> Iterator[Said]:
        self.alarms += 1
        if self.alarms == 1:  # the next ones are on the progress line, and counted
            yield Said(f"alarm at step {event.get('step', '?')}: {alarm(event)}", "warn")


def cost(event: Event) -> str:
    """Say what rounding cost a merge."""
    kept = f"{words.share(event['kept'])} of the delta is in the weights"
    total = "" if _alike(event) else f" ({words.share(event['kept_total'])} with the residual)"
    moved = f"‖ΔW‖/‖W‖ {words.number(event['relative'], 2)}"
    return f"{kept}{total}, {moved}, largest rounding error {words.number(event['max_error'], 2)}"


def _alike(event: Event) -> bool:
    return abs(float(event["kept_total"]) - float(event["kept"])) < 5e-3


def alarm(event: Event) -> str:
    """Return an alarm's own text, or what it carries."""
    if "text" in event:
        return words.clean(event["text"])
    carried = {k: v for k, v in event.items() if k not in ("event", "phase")}
    return ", ".join(f"{words.clean(k)} {words.clean(v)}" for k, v in carried.items())


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
