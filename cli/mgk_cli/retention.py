"""What is read off the retention matrix, in words: BWT, forgetting, the base's drift, paired tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mgk_cli import formatting as fmt
from mgk_cli.matrix import taught_in
from mgk_cli.tables import Column, fitted, text

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text


def figures(table: Mapping[str, Any]) -> Iterator[Text]:
    """Say BWT, forgetting with its definition, and what the base lost, or that nobody measured it."""
    metrics = sorted(set(_averaged(table)))
    mixed = f"; a mean over different metrics ({', '.join(metrics)})" if len(metrics) > 1 else ""
    if table["bwt"] is not None:
        meaning = "mean change of earlier probes since they were taught; negative is forgetting"
        yield text(f"BWT {fmt.signed(table['bwt'])} ({meaning}{mixed})")
    if table["forgetting"] is not None:
        yield text(
            f"forgetting {fmt.number(table['forgetting'], 3)} ({table['forgetting_definition']})"
        )
    if table["worst"] is not None and table["worst"][1] < 0:
        yield text(f"lost most: {table['worst'][0]} {fmt.signed(table['worst'][1])}", "yellow")
    yield base(table)


def _averaged(table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metric of each probe that BWT is a mean over: taught before the last row, and scored then and now."""
    last = len(table["rows"]) - 1
    for j, probe in enumerate(table["probes"]):
        taught = taught_in(table, probe)
        if (
            taught is not None
            and taught < last
            and None not in (table["R"][taught][j], table["R"][last][j])
        ):
            yield probe["metric"]


def base(table: Mapping[str, Any]) -> Text:
    """Say what the base lost, or loudly that nobody measured it."""
    if not table["base_measured"]:
        unknown = "no probe measures what the untouched base could do; what it lost is unknown"
        return text(f"base UNMEASURED: {unknown}", "bold yellow")
    drift = ", ".join(f"{p} {fmt.signed(d)}" for p, d in table["base_drift"].items())
    return text(f"base since row 0: {drift}" if drift else "base: measured in row 0 only so far")


def changes(table: Mapping[str, Any], width: int) -> Iterator[RenderableType]:
    """Draw the paired comparisons: on the same items, in the probe's phase, since then, and over all."""
    if not table["paired"]:
        return
    rows = [r["name"] for r in table["rows"]]
    columns = [
        Column("same items"),
        *(Column(h, right=True) for h in ("in its phase", "since then", "over all")),
    ]
    for probe in table["probes"]:
        cells = {
            _when(pair, probe, rows): pair
            for pair in table["paired"]
            if pair["probe"] == probe["name"]
        }
        if cells:
            columns[0].cells.append(text(probe["name"]))
            for column, when in zip(columns[1:], ("phase", "since", "all"), strict=True):
                column.cells.append(_change(cells.get(when)))
    yield text("")
    yield fitted(columns, width)
    yield text(f"better by, ± standard error, {_unit(table)}", "dim")
    yield text(
        "in its phase: against the row before; since then: from there to the last row; over all: against row 0",
        "dim",
    )
    used = ", ".join(sorted({p["test"] for p in table["paired"]}))
    yield text(f"{used}: * p < 0.05, ** p < 0.01, *** p < 0.001, ns not significant", "dim")


def _unit(table: Mapping[str, Any]) -> str:
    """Say in what the differences are. A perplexity's items are log-likelihoods, so theirs are too."""
    compared = {p["probe"] for p in table["paired"]}
    metrics = {p["metric"] for p in table["probes"] if p["name"] in compared}
    own, nats = "in the probe's metric", "in nats per token (log-likelihood)"
    if "perplexity" not in metrics:
        return own
    return (
        f"{nats}, not in perplexity"
        if len(metrics) == 1
        else f"{own}; where that is perplexity, {nats}"
    )


def _when(pair: Mapping[str, Any], probe: Mapping[str, Any], rows: list[str]) -> str:
    """Say which comparison a pair is. A phase that comes first and last is its own whole run."""
    if pair["to"] == probe["phase"] and rows.index(pair["from"]) == rows.index(pair["to"]) - 1:
        return "phase"
    return "since" if pair["from"] == probe["phase"] and pair["from"] != "base" else "all"


def _change(pair: Mapping[str, Any] | None) -> Text:
    if pair is None:
        return text("–", "dim")
    value = fmt.score(pair["difference"], pair["stderr"])
    sign = "+" if pair["difference"] > 0 else ""
    style = "dim" if pair["p"] >= 0.05 else ("green" if pair["difference"] > 0 else "yellow")
    return text(f"{sign}{value} {stars(pair['p']):3}", style)


def stars(p: float) -> str:
    """Return the usual marks of significance."""
    return "***" if p < 0.001 else "**" if p < 0.01 else "*" if p < 0.05 else "ns"
