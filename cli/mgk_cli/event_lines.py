"""Turns the events of a run into lines of text. Every figure comes from an event."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import define, field, frozen

from mgk_cli import formatting as fmt
from mgk_cli.score_lines import score_lines

Tone = Literal["plain", "head", "dim", "good", "warn", "bad"]
Event = Mapping[str, Any]


@frozen
class Line:
    """One line of output. wrap: False for a row of a table."""

    text: str
    tone: Tone = "plain"
    indent: int = 2
    wrap: bool = True


@define
class EventLines:
    """Turns events into lines and keeps what later lines refer to. width: of tables, in cells."""

    width: int = 80
    phases: int = 0
    first_step: Event | None = None
    last_step: Event | None = None
    merge: Event | None = None
    verification: Event | None = None
    row: dict[str, float] = field(factory=dict)
    alarms: int = 0

    def __call__(self, event: Event) -> Iterator[Line]:
        """Yield the lines for one event; most events have one or none."""
        lines_of = getattr(self, f"_{event['event']}", None)
        if lines_of is not None:
            yield from lines_of(event)

    def trained(self) -> Iterator[Line]:
        """Yield a line about the training that just ended, if any."""
        first, last = self.first_step, self.last_step
        self.first_step = self.last_step = None
        if first is None or last is None:
            return
        memory = fmt.size(last.get("cuda_peak", last.get("rss_peak")))
        loss = f"loss {fmt.number(first['loss'])} → {fmt.number(last['loss'])}"
        pace = fmt.rate(last.get("per_second"), unit_of(last))
        yield Line(
            f"trained {fmt.several(last['step'], 'step')}: {loss}, {pace}, peak {memory}"
        )
        begin, end = first.get("figures", {}), last.get("figures", {})
        changes = [
            f"{fmt.clean(name)} {fmt.number(begin[name], 3)} → {fmt.number(end[name], 3)}"
            for name in end
            if name in begin
        ]
        if changes:
            yield Line("; ".join(changes), "dim")
        if self.alarms > 1:
            yield Line(f"{self.alarms} alarms in total", "warn")
        self.alarms = 0

    def merged(self) -> Iterator[Line]:
        """Yield a line about the merge that just ended, if any, with its verification."""
        merge, found = self.merge, self.verification
        self.merge = self.verification = None
        if merge is None:
            return
        how = [] if merge["rule"] == "exact" else [fmt.clean(merge["rule"])]
        if merge["scale"] != 1:
            how.append(f"scaled by {fmt.number(merge['scale'], 3)}")
        note = f" ({', '.join(how)})" if how else ""
        text = f"merged{note}: {delta_kept(merge)}"
        if found is not None:
            text += f", {compared(found)}"
        yield Line(text, "plain" if found is None or found["ok"] else "bad")
        for warning in merge["warnings"]:
            yield Line(fmt.clean(warning), "warn")

    def _load(self, event: Event) -> Iterator[Line]:
        if event["what"] == "base":
            yield Line(
                f"base {fmt.clean(event['type'])} on {fmt.clean(event['device'])}",
                indent=0,
            )
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
                "not merged (kept apart): the base is unchanged, model/ omits it",
                "warn",
            )
        elif event.get("result") == "rolled_back":
            yield Line("rolled back: the base is as it was before the phase", "bad")

    def _step(self, event: Event) -> Iterator[Line]:
        if self.first_step is None:
            self.first_step = event
        self.last_step = event
        if event.get("skipped"):
            count = fmt.several(event["skipped"], "step")
            text = f"{count} skipped before step {event['step']}: loss or gradient not finite"
            yield Line(text, "warn")

    def _dev(self, event: Event) -> Iterator[Line]:
        yield Line(
            f"dev loss {fmt.number(event['loss'])} at step {event['step']}", "dim"
        )

    def _early_stop(self, event: Event) -> Iterator[Line]:
        best = fmt.number(event["best_loss"])
        yield Line(
            f"early stop at step {event['step']} of {event['steps']}: dev loss was best, {best},"
            f" at step {event['best_step']}"
        )

    def _merge(self, event: Event) -> Iterator[Line]:
        yield from self.trained()
        self.merge = event

    def _verify(self, event: Event) -> Iterator[Line]:
        yield from self.trained()  # a merge rule may verify before its merge event
        self.verification = event
        if not event["ok"]:
            yield from self.merged()

    def _evaluation(self, event: Event) -> Iterator[Line]:
        yield from self.trained()
        yield from self.merged()
        name = "baseline" if event["row"] == "base" else fmt.clean(event["row"])
        scores = {s["probe"]: s for s in event["scores"]}
        for text in score_lines(name, self.row, scores, self.width - 2):
            yield Line(text, wrap=False)
        self.row |= {probe: s["value"] for probe, s in scores.items()}

    def _gate(self, event: Event) -> Iterator[Line]:
        for note in event["notes"]:
            yield Line(fmt.clean(note), "warn")
        for refusal in event["refusals"]:
            reason = fmt.clean(refusal["reason"])
            yield Line(f"refused by {fmt.clean(refusal['gate'])}: {reason}", "bad")
        if event["accept"]:
            yield Line("all gates passed", "good")

    def _recover(self, event: Event) -> Iterator[Line]:
        method, action = fmt.clean(event["method"]), fmt.clean(event["action"])
        yield Line(f"recovery: {method} ({action})", "warn")

    def _note(self, event: Event) -> Iterator[Line]:
        phase = event.get("phase")
        text = fmt.clean(event["text"])
        yield Line(f"{fmt.clean(phase)}: {text}" if phase else text, "dim")

    def _alarm(self, event: Event) -> Iterator[Line]:
        self.alarms += 1
        if (
            self.alarms == 1
        ):  # later alarms are counted and flagged on the progress line
            yield Line(
                f"alarm at step {event.get('step', '?')}: {alarm(event)}", "warn"
            )


def delta_kept(merge: Event) -> str:
    """Return how much of the delta the rounded weights hold."""
    kept = f"{fmt.share(merge['kept'])} of ΔW kept"
    if abs(float(merge["kept_total"]) - float(merge["kept"])) < 5e-3:
        return kept
    return f"{kept} ({fmt.share(merge['kept_total'])} with the residual)"


def compared(found: Event) -> str:
    """Return the error of the merged outputs against the unmerged ones."""
    return f"error {found['error']:.2g}, tolerance from rounding {found['bound']:.2g}"


def alarm(event: Event) -> str:
    """Return an alarm's text, or its data."""
    if "text" in event:
        return fmt.clean(event["text"])
    data = {k: v for k, v in event.items() if k not in ("event", "phase")}
    return ", ".join(f"{fmt.clean(k)} {fmt.clean(v)}" for k, v in data.items())


def drift(event: Event) -> str:
    """Return how far the model has moved so far, for the progress line."""
    if event.get("drift") is not None:
        return f"drift {100 * event['drift']:.2g} %"
    return f"‖ΔW‖/‖W‖ {100 * event['relative']:.2g} %"


def unit_of(event: Event) -> str:
    """Return the unit that a step event counts in."""
    return str(event.get("unit", "samples"))
