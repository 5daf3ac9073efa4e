"""The words of a report: its headline, and what each phase gained, cost and was judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen

from mgk_report import figures
from mgk_report.matrix import gain, share_of_gain, worse
from mgk_report.record import Phase, Run, drawable

RESULTS = {
    "committed": "merged",
    "kept_apart": "kept apart: not part of the model",
    "rolled_back": "refused by its gates and rolled back",
    "training": "in training",
    "waiting": "not started",
}
WORST = 10
"""Items listed of a probe: those that lost most."""


@frozen
class Changed:
    """The items of one probe before and after a phase. worst: (item, before, after, better by)."""

    probe: str
    better: int
    same: int
    worse: int
    chart: figures.Spec | None
    worst: Sequence[tuple[int, float, float, float]]


@frozen
class PhaseStory:
    """One phase as the page shows it. facts: (what, value) pairs."""

    name: str
    title: str
    result: str
    ok: bool
    facts: Sequence[tuple[str, str]]
    gates: Sequence[str]
    attempts: Sequence[str]
    notes: Sequence[str]
    charts: Sequence[tuple[str, figures.Spec]]
    items: Sequence[Changed]


def headline(run: Run) -> str:
    """Describe in a few short sentences how a run ended, what it gained and what it cost."""
    count = len(run.phases)
    base = run.base.get("id", run.base.get("type", "?"))
    parts = [f"{count} {'phase' if count == 1 else 'phases'} on {base}: {run.status}."]
    parts += _gains(run)
    parts += [_kept(run), _cost(run)]
    if refused := [p.name for p in run.phases if p.result == "rolled_back"]:
        parts.append(f"The gates refused {', '.join(refused)}.")
    elif run.status == "finished":
        parts.append("All gates passed.")
    return " ".join(part for part in parts if part)


def _gains(run: Run) -> list[str]:
    """Describe what each phase gained on the first of the probes that it teaches."""
    found, told = [], set()
    for j, probe in enumerate(run.retention.get("probes", ())):
        change = gain(run.retention, j)
        if change is not None and probe["phase"] not in told:
            told.add(probe["phase"])
            noise = "" if change.significant else " (n.s.)"
            found.append(
                f"{probe['name']} {change.change:+.3g} {probe['metric']}{noise}."
            )
    return found


def _kept(run: Run) -> str:
    """Describe how much of the gains that later phases could take back is left."""
    table, found = run.retention, []
    last = len(table.get("rows", ())) - 1
    for j, probe in enumerate(table.get("probes", ())):
        taught = [
            i for i, row in enumerate(table["rows"]) if row["name"] == probe["phase"]
        ]
        share = share_of_gain(table, last, j) if last > 0 else "–"
        if share.endswith("%") and taught and 0 < taught[0] < last:
            found.append(f"{share} of {probe['name']}")
    return f"Of earlier gains the model keeps {', '.join(found)}." if found else ""


def _cost(run: Run) -> str:
    """Describe what became worse over the whole run, beyond noise."""
    if len(run.retention.get("rows", ())) < 2:
        return ""
    names = {p["name"]: p for p in run.retention["probes"]}
    lost = [p for p in worse(run) if p["from"] == run.retention["rows"][0]["name"]]
    base = [p for p in names.values() if p["phase"] == "base"]
    if lost:
        return "Worse than the baseline: " + ", ".join(p["probe"] for p in lost) + "."
    unmeasured = "" if base else " What else the base could do was not measured."
    return f"Nothing measured is worse than the baseline beyond noise.{unmeasured}"


@frozen
class Answered:
    """One prompt of a probe with the base's answer and the latest one."""

    probe: str
    prompt: str
    before: str
    after: str


def answers(run: Run) -> list[Answered]:
    """Return the answers of the base and of the last row that has some, changed ones first."""
    rows = [run.scores, *(p.scores for p in run.phases if p.result == "committed")]
    latest = {
        score["probe"]: score
        for row in rows[1:]
        for score in row
        if score.get("answers")
    }
    found = []
    for score in run.scores:
        after = latest.get(score["probe"], {}).get("answers", ())
        for old, new in zip(score.get("answers", ()), after, strict=False):
            if old["prompt"] == new["prompt"]:
                found.append(
                    Answered(score["probe"], old["prompt"], old["text"], new["text"])
                )
    return sorted(found, key=lambda answer: answer.before == answer.after)


def phases(run: Run) -> list[PhaseStory]:
    """Describe each phase of a run."""
    before = run.scores
    found = []
    for phase in run.phases:
        found.append(_phase(phase, before))
        if phase.result == "committed":
            before = phase.scores
    return found


def _phase(phase: Phase, before: Sequence[Mapping[str, Any]]) -> PhaseStory:
    return PhaseStory(
        name=phase.name,
        title=phase.title,
        result=RESULTS.get(phase.result, phase.result),
        ok=phase.result in ("committed", "kept_apart"),
        facts=_facts(phase),
        gates=_gates(phase),
        attempts=[_attempt(a) for a in (phase.entry or {}).get("attempts", ())],
        notes=[str(note) for note in (phase.entry or {}).get("notes", ())],
        charts=_charts(phase),
        items=_items(before, phase.scores),
    )


def _facts(phase: Phase) -> list[tuple[str, str]]:
    facts, steps = [], phase.steps
    if steps:
        seconds = sum(float(s["seconds"]) for s in steps)
        count = sum(int(s["count"]) for s in steps)
        pace = (
            f"{count / seconds:,.0f} {steps[-1].get('unit', 'samples')}/s"
            if seconds
            else "–"
        )
        facts = [
            ("steps", f"{steps[-1]['step']} of {steps[-1]['steps']}"),
            ("loss", _from_to([s["loss"] for s in steps])),
            ("throughput", pace),
            (
                "steps skipped (not drawable)",
                str(sum(int(s["skipped"]) for s in steps)),
            ),
        ]
    entry = phase.entry or {}
    if entry.get("result") == "committed":
        check = entry.get("verify") or {}
        facts += [
            ("merge rule", str(entry["rule"])),
            ("scale", f"{entry['scale']:.3g}"),
            ("‖ΔW‖/‖W‖", f"{phase.merge.get('relative', 0.0):.3g}"),
            ("share of the delta in the weights", f"{entry['kept']:.4%}"),
            ("largest rounding error", f"{entry['max_error']:.2g}"),
        ]
        if "error" in check:
            measured = (
                f"{check['error']:.2g} (tolerance from rounding {check['bound']:.2g})"
            )
            facts.append(("merged against unmerged", measured))
    return facts


def _from_to(losses: Sequence[float | None]) -> str:
    """First and last loss. A step all of whose micro-batches were skipped has none."""
    found = [loss for loss in losses if loss is not None]
    return f"{found[0]:.4g} → {found[-1]:.4g}" if found else "–"


def _gates(phase: Phase) -> list[str]:
    """Describe what each verdict was; the reasons of refusals as the gates gave them."""
    found = []
    for event in phase.events:
        if event["event"] == "gate":
            reasons = [_reason(r) for r in event.get("refusals", ())]
            found.append(
                "passed" if event["accept"] else "refused: " + "; ".join(reasons)
            )
            found += [str(note) for note in event.get("notes", ())]
    return found


def _reason(refusal: Any) -> str:
    if isinstance(refusal, Mapping):
        return str(refusal.get("reason", refusal))
    return str(refusal)


def _attempt(attempt: Any) -> str:
    if not isinstance(attempt, Mapping):
        return str(attempt)
    return ", ".join(
        f"{k}: {v}" for k, v in attempt.items() if v not in (None, [], {}, "")
    )


def _charts(phase: Phase) -> list[tuple[str, figures.Spec]]:
    steps = [drawable(s) for s in phase.steps]
    charts: list[tuple[str, figures.Spec]] = []
    if len(steps) > 1:
        charts = [
            (
                "Training loss",
                figures.loss_curve([s for s in steps if s["loss"] is not None]),
            ),
            ("Learning rate", figures.curve(steps, "lr", "learning rate")),
            ("Gradient norm", figures.curve(steps, "grad_norm", "gradient norm")),
            (
                "Throughput",
                figures.curve(steps, "per_second", f"{steps[-1].get('unit')}/s"),
            ),
        ]
        memory = next((k for k in ("cuda_peak", "rss_peak") if k in steps[-1]), None)
        if memory is not None:
            gib = [
                {"step": s["step"], "gib": s[memory] / 2**30}
                for s in steps
                if memory in s
            ]
            charts.append(("Peak memory", figures.curve(gib, "gib", "GiB")))
    merged = phase.merge.get("weights", ())
    if merged:
        charts.append(
            ("Change of each weight", figures.weights(drawable(_weights(merged))))
        )
    return charts


def _weights(merged: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for index, weight in enumerate(merged):
        relative = (
            weight["delta_norm"] / weight["weight_norm"]
            if weight["weight_norm"]
            else None
        )
        row = {"index": index, "relative": relative}
        rows.append({**row, **{k: weight[k] for k in ("name", "kept", "max_error")}})
    return rows


def _items(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[Changed]:
    """Compare per-item scores of the probes that both rows have."""
    earlier = {score["probe"]: score for score in before}
    found = []
    for score in after:
        old = earlier.get(score["probe"])
        if old is not None and len(old["per_item"]) == len(score["per_item"]) > 0:
            found.append(_changed(old, score))
    return found


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> Changed:
    # Perplexity's items are negative log-likelihoods: lower is better there too.
    sign = 1.0 if new["higher_is_better"] else -1.0
    moves = [
        (i, float(a), float(b), sign * (b - a))
        for i, (a, b) in enumerate(zip(old["per_item"], new["per_item"], strict=True))
    ]
    losers = sorted((m for m in moves if m[3] < 0), key=lambda move: move[3])
    return Changed(
        probe=str(new["probe"]),
        better=sum(m[3] > 0 for m in moves),
        same=sum(m[3] == 0 for m in moves),
        worse=len(losers),
        chart=figures.items(drawable([_move(m[3]) for m in moves]))
        if any(m[3] for m in moves)
        else None,
        worst=losers[:WORST],
    )


def _move(better_by: float) -> dict[str, Any]:
    side = "the same" if better_by == 0 else "better" if better_by > 0 else "worse"
    return {"better_by": better_by, "side": side}
