"""Charts as Vega-Lite specifications: plain data, which the page draws when they scroll into view.

Text and axes take the page's own colour, so that one chart serves light, dark and paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

SCHEMA = "https://vega.github.io/schema/vega-lite/v6.json"
"""Names the language; nothing is fetched from there."""

BLUE, ORANGE, GREY = "#3b82f6", "#d9730d", "#8a8f98"
POINTS = 600
"""Most points of one curve: more cannot be told apart on a page, and would only make the file large."""

_SIDES = {"domain": ["better", "the same", "worse"], "range": [BLUE, GREY, ORANGE]}

_PLAIN = {
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "domainColor": GREY,
        "tickColor": GREY,
        "gridColor": GREY,
        "gridOpacity": 0.25,
    },
    "legend": {
        "labelColor": "currentColor",
        "titleColor": "currentColor",
        "orient": "top",
    },
}


def thinned(rows: Rows) -> list[Mapping[str, Any]]:
    """Return at most `POINTS` rows, evenly spaced, the last one among them."""
    if len(rows) <= POINTS:
        return list(rows)
    stride = len(rows) / POINTS
    return [rows[int((i + 1) * stride) - 1] for i in range(POINTS)]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start (as Adam corrects its moments).

    The more values there are, the more of them are averaged.
    """
    weight = min(0.9, len(values) / (len(values) + 10))
    result, mean, total = [], 0.0, 0.0
    for value in values:
        mean = weight * mean + (1 - weight) * value
        total = weight * total + (1 - weight)
        result.append(mean / total)
    return result


def loss_curve(steps: Rows) -> Spec:
    """Raw loss as dots, its moving average as a line, over the steps of a phase."""
    rows = thinned(steps)
    averages = smoothed([float(row["loss"]) for row in rows])
    values = [
        {"step": row["step"], "loss": row["loss"], "average": average}
        for row, average in zip(rows, averages, strict=True)
    ]
    tooltip = [
        _field("step", "Q"),
        _field("loss", "Q", ".4g"),
        _field("average", "Q", ".4g"),
    ]
    return _chart(
        values,
        layer=[
            {
                "mark": {
                    "type": "point",
                    "filled": True,
                    "size": 22,
                    "opacity": 0.45,
                    "color": BLUE,
                },
                "encoding": {
                    "y": _axis("loss", "loss (dots) and moving average"),
                    "tooltip": tooltip,
                },
            },
            {
                "mark": {"type": "line", "color": ORANGE, "strokeWidth": 2},
                "encoding": {
                    "y": {"field": "average", "type": "quantitative"},
                    "tooltip": tooltip,
                },
            },
        ],
        encoding={"x": _axis("step", "step")},
    )


def curve(steps: Rows, key: str, title: str) -> Spec:
    """One quantity over the steps of a phase."""
    values = [
        {"step": row["step"], "value": row[key]} for row in thinned(steps) if key in row
    ]
    return _chart(
        values,
        mark={"type": "line", "color": BLUE, "point": len(values) < 40},
        encoding={
            "x": _axis("step", "step"),
            "y": _axis("value", title),
            "tooltip": [_field("step", "Q"), _field("value", "Q", ".4g")],
        },
    )


def weights(rows: Rows) -> Spec:
    """‖ΔW‖/‖W‖ of each merged weight, in the order of the model."""
    return _chart(
        list(rows),
        mark={"type": "bar", "color": BLUE},
        encoding={
            "x": {
                "field": "index",
                "type": "ordinal",
                "axis": {"title": "weight", "labels": False, "ticks": False},
            },
            "y": _axis("relative", "‖ΔW‖ / ‖W‖"),
            "tooltip": [
                _field("name", "N"),
                _field("relative", "Q", ".3g"),
                _field("kept", "Q", ".1%"),
                _field("max_error", "Q", ".2g"),
            ],
        },
    )


def items(rows: Rows) -> Spec:
    """How many items of a probe got better or worse, and by how much. rows: ``better_by``, ``side``."""
    bins = {"bin": {"maxbins": 30}, "title": "item better by"}
    count = {"aggregate": "count", "title": "items"}
    return _chart(
        list(rows),
        mark={"type": "bar"},
        encoding={
            "x": {"field": "better_by", "type": "quantitative", **bins},
            "y": {**count, "axis": {"tickMinStep": 1}},
            "color": {
                "field": "side",
                "type": "nominal",
                "title": None,
                "scale": _SIDES,
            },
            "tooltip": [_field("side", "N"), count],
        },
    )


def times(rows: Rows) -> Spec:
    """Seconds by part of the work and phase."""
    return _chart(
        list(rows),
        mark={"type": "bar"},
        encoding={
            "x": {"field": "seconds", "type": "quantitative", "title": "seconds"},
            "y": {"field": "part", "type": "nominal", "sort": "-x", "title": None},
            "color": {
                "field": "phase",
                "type": "nominal",
                "title": "phase",
                "scale": {"scheme": "tableau10"},
            },
            "tooltip": [
                _field("phase", "N"),
                _field("part", "N"),
                _field("seconds", "Q", ".2f"),
            ],
        },
    )


def _chart(values: Rows, **parts: Any) -> Spec:
    return {
        "$schema": SCHEMA,
        "width": "container",
        "height": 170,
        "config": _PLAIN,
        "data": {"values": list(values)},
        **parts,
    }


def _axis(name: str, title: str) -> Spec:
    axis = {"title": title, "format": ".3~g"}
    return {
        "field": name,
        "type": "quantitative",
        "axis": axis,
        "scale": {"zero": False},
    }


def _field(name: str, kind: str, form: str | None = None) -> Spec:
    types = {"Q": "quantitative", "N": "nominal"}
    found = {"field": name, "type": types[kind], "title": name.replace("_", " ")}
    return found if form is None else {**found, "format": form}
