"""Distortion against bytes: the staircase of this measurement, uniform formats, and other methods where compared."""

from __future__ import annotations

from typing import Any

from natprec.reporting.chart import Chart, Point
from natprec.reporting.elements import Markup, element, joined, missing, table
from natprec.utils.human import human_bytes

MOST = 300
"""Points of the staircase that are drawn."""


def methods_panel(data: dict[str, Any]) -> Markup:
    """The plot, and the rows of `natprec compare`."""
    rows = compared(data)
    return joined([_plot(data, rows), _table(data, rows)])


def compared(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the comparison that succeeded, by distortion."""
    rows = [] if data["comparison"] is None else data["comparison"]["rows"]
    good = [row for row in rows if row.get("status") == "ok" and isinstance(row.get("kl_mean"), int | float)]
    return sorted(good, key=lambda row: (row["kl_mean"], row["stored_bytes"]))


def _plot(data: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    stairs, found, words = data["stairs"], data["verification"], data["distortion"]
    points = [
        Point(
            row["stored_bytes"] / 1e6, row["kl_mean"], f"{row['method']} {row['bits']}", tuple(row["kl_ci95"]), "other"
        )
        for row in rows
    ]
    if found is not None:
        own = Point(
            found["stored_bytes"] / 1e6, found["kl_mean"], "this checkpoint, measured", tuple(found["kl_ci95"]), "own"
        )
        points.append(own)
    lines = {}
    if stairs is not None:
        step = max(1, len(stairs["kl"]) // MOST)
        places = sorted({*range(0, len(stairs["kl"]), step), len(stairs["kl"]) - 1})
        lines["predicted by the measurement"] = [
            ((stairs["stored"][i] + stairs["fixed"]) / 1e6, stairs["kl"][i] + stairs["lost"]) for i in places
        ]
    if not points and not lines:
        return missing("Distortion against bytes", "natprec measure")
    chart = Chart("bytes of the checkpoint, MB", f"{words['label']}, {words['unit']}", lines, points)
    return element("figure", chart.svg("Distortion against bytes"), element("figcaption", _caption(rows)))


def _caption(rows: list[dict[str, Any]]) -> str:
    line = "The line is the staircase: each point of it is a plan, predicted. Bars are 95 % intervals."
    return line if not rows else f"{line} Other methods store weight files alone, without tokenizer files."


def _table(data: dict[str, Any], rows: list[dict[str, Any]]) -> Markup:
    if data["comparison"] is None:
        return missing("Other methods", "natprec compare --model MODEL --out DIR")
    return table(
        "Methods on the same model and text",
        ("method", "bits", data["distortion"]["label"], "stored"),
        [(row["method"], row["bits"], f"{row['kl_mean']:.4g}", human_bytes(row["stored_bytes"])) for row in rows],
        (1, 2, 3),
    )
