"""What phases changed: every comparison between two rows of the retention matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from mgk_cli import formatting as fmt


@frozen
class Effect:
    """How a probe changed from one row of the matrix to another. change: positive is better."""

    start: str
    end: str
    probe: str
    change: float
    stderr: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether the change is more than noise (p < 0.05)."""
        return self.p < 0.05

    @property
    def weight(self) -> float:
        """The change in standard errors, to rank effects on different metrics."""
        return self.change / self.stderr if self.stderr > 0 else self.change

    @property
    def style(self) -> str:
        """Green for better, yellow for worse, dim for noise."""
        if not self.significant:
            return "dim"
        return "green" if self.change > 0 else "yellow"

    def __str__(self) -> str:
        sign = "+" if self.change > 0 else ""
        return f"{sign}{fmt.score(self.change, self.stderr)} {significance(self.p)}"


@frozen
class Effects:
    """The effects in one matrix. table: as in retention.json."""

    table: Mapping[str, Any]
    found: tuple[Effect, ...] = ()

    def between(self, start: str, end: str) -> list[Effect]:
        """Return the effects on all probes from one row to another."""
        return [e for e in self.found if (e.start, e.end) == (start, end)]

    def of(self, probe: str, start: str, end: str) -> Effect | None:
        """Return the effect on one probe; None where it was not measured in both rows."""
        return next((e for e in self.between(start, end) if e.probe == probe), None)

    def gain_kept(self, probe: str) -> str:
        """Return the share of a probe's gain that the last row has; n.s. where the gain is noise."""
        phase = next(p["phase"] for p in self.table["probes"] if p["name"] == probe)
        gain = self.of(probe, self.table["rows"][0]["name"], phase)
        if gain is None:
            return "–"
        if not gain.significant:
            return "n.s."
        return fmt.share(self.table["gain_kept"].get(probe))


def effects_in(table: Mapping[str, Any]) -> Effects:
    """Return the effects in a matrix, which may be empty."""
    if not table.get("rows"):
        return Effects(table)
    from mgk_core.run.scores import changes_in

    found = []
    for c in changes_in(table):
        effect = Effect(
            c["from"], c["to"], c["probe"], c["change"], c["stderr"], c["p"]
        )
        found.append(effect)
    return Effects(table, tuple(found))


def significance(p: float) -> str:
    """Return the usual marks of significance; n.s. for p ≥ 0.05."""
    for limit, mark in ((0.001, "***"), (0.01, "**"), (0.05, "*")):
        if p < limit:
            return mark
    return "n.s."
