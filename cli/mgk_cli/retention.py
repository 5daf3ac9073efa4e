"""What is read off the retention matrix, in words: BWT, forgetting, the base's drift, paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mgk_cli import formatting as fmt
from mgk_cli.effects import effects_in, significance
from mgk_cli.tables import Column, fitted, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def figures(table: Mapping[str, Any]) -> Iterator[Text]:
    """Yield BWT and forgetting for each metric, and how the base changed."""
    for metric, value in by_metric(table, "bwt").items():
        meaning = (
            "mean change of earlier probes since their phase; negative is forgetting"
        )
        yield text(f"BWT {fmt.signed(value)} {metric} ({meaning})")
    for metric, value in by_metric(table, "forgetting").items():
        definition = table["forgetting_definition"]
        yield text(f"forgetting {fmt.number(value, 3)} {metric} ({definition})")
    yield baseline_drift(table)


def by_metric(table: Mapping[str, Any], figure: str) -> Mapping[str, float]:
    """Return BWT or forgetting by metric.

    Earlier versions wrote one mean over all probes, which means something for a single metric only.
    """
    found: Mapping[str, float] | None = table.get(f"{figure}_by_metric")
    if found is not None:
        return found
    metrics = {p["metric"] for p in table.get("probes", ())}
    value = table.get(figure)
    return {metrics.pop(): value} if len(metrics) == 1 and value is not None else {}


def baseline_drift(table: Mapping[str, Any]) -> Text:
    """Return what the base lost since the baseline, or a warning that nothing measured it."""
    if not table["base_measured"]:
        unknown = (
            "base UNMEASURED: no probe measures the base, so what it lost is unknown"
        )
        return text(unknown, "bold yellow")
    rows = table["rows"]
    effects = effects_in(table)
    found = (
        effects.of(p, rows[0]["name"], rows[-1]["name"]) for p in table["base_drift"]
    )
    drift = ", ".join(f"{e.probe} {e}" for e in found if e is not None)
    if not drift:
        return text("base: only the baseline is measured so far")
    return text(f"base since the baseline: {drift}")


def changes(table: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """Draw the comparisons on the same items: in the probe's phase, since then, and in total."""
    if not table["paired"]:
        return
    rows = [r["name"] for r in table["rows"]]
    columns = [
        Column("same items", shrink=True),
        *(Column(h, right=True) for h in ("in its phase", "since then", "in total")),
    ]
    for probe in table["probes"]:
        cells = {
            _when(pair, probe, rows): pair
            for pair in table["paired"]
            if pair["probe"] == probe["name"]
        }
        if cells:
            columns[0].cells.append(text(probe["name"]))
            for column, when in zip(
                columns[1:], ("phase", "since", "all"), strict=True
            ):
                column.cells.append(_change(cells.get(when)))
    yield text("")
    yield fitted(columns, width)
    yield text(f"+ is better, ± standard error, {_unit(table)}", "dim")
    yield text(
        "in its phase: vs the row before; since then: from its phase to the last row;"
        " in total: vs the baseline",
        "dim",
    )
    used = ", ".join(sorted({p["test"] for p in table["paired"]}))
    yield text(
        f"{used}: * p < 0.05, ** p < 0.01, *** p < 0.001, n.s. not significant", "dim"
    )


def _unit(table: Mapping[str, Any]) -> str:
    """Return the unit of the differences. Those of a perplexity are log-likelihoods, like its items."""
    compared = {p["probe"] for p in table["paired"]}
    metrics = {p["metric"] for p in table["probes"] if p["name"] in compared}
    own, nats = "in the probe's metric", "in nats per token (log-likelihood)"
    if "perplexity" not in metrics:
        return own
    return (
        f"{nats}, not in perplexity"
        if len(metrics) == 1
        else f"{own}; for perplexity {nats}"
    )


def _when(pair: Mapping[str, Any], probe: Mapping[str, Any], rows: list[str]) -> str:
    """Return which comparison a pair is. For a single phase, its own comparison is the total."""
    if (
        pair["to"] == probe["phase"]
        and rows.index(pair["from"]) == rows.index(pair["to"]) - 1
    ):
        return "phase"
    return (
        "since" if pair["from"] == probe["phase"] and pair["from"] != "base" else "all"
    )


def _change(pair: Mapping[str, Any] | None) -> Text:
    if pair is None:
        return text("–", "dim")
    value = fmt.score(pair["difference"], pair["stderr"])
    sign = "+" if pair["difference"] > 0 else ""
    style = (
        "dim"
        if pair["p"] >= 0.05
        else ("green" if pair["difference"] > 0 else "yellow")
    )
    return text(f"{sign}{value} {significance(pair['p']):4}", style)
