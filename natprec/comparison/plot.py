"""The comparison as a plot: KL against stored bytes, and the front that no method beats in both."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from natprec.comparison.report import is_own

TOGETHER = 0.06
"""Points nearer than this share of the plot's width are labelled in one column."""
GAP = 0.035
"""Height of a label as a share of the plot's height."""


def pareto(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that no other beats in both KL and bytes, by bytes.

    >>> points = [(100, 0.3), (120, 0.1), (130, 0.2), (140, 0.05)]
    >>> rows = [{"stored_bytes": size, "kl_mean": kl} for size, kl in points]
    >>> [row["stored_bytes"] for row in pareto(rows)]
    [100, 120, 140]
    """
    front: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda row: (row["stored_bytes"], row["kl_mean"])):
        if not front or row["kl_mean"] < front[-1]["kl_mean"]:
            front.append(row)
    return front


def plot(report: dict[str, Any], file: Path) -> bool:
    """KL against stored bytes as a PNG; False without matplotlib or without rows."""
    rows = [row for row in report["rows"] if row["status"] == "ok"]
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    if not rows:
        return False
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    front = pareto(rows)
    axes.step(
        [_megabytes(row) for row in front], [row["kl_mean"] for row in front], where="post", color="0.8", linewidth=1
    )
    for own, color, marker in ((False, "tab:blue", "o"), (True, "tab:green", "D")):
        chosen = [row for row in rows if is_own(row) == own]
        values = [row["kl_mean"] for row in chosen]
        below = [row["kl_mean"] - row["kl_ci95"][0] for row in chosen]
        above = [row["kl_ci95"][1] - row["kl_mean"] for row in chosen]
        axes.errorbar(
            [_megabytes(row) for row in chosen], values, yerr=[below, above], color=color, fmt=marker, linewidth=1,
            markersize=5,
        )  # fmt: skip
    axes.set_yscale("log")
    axes.margins(y=0.1)
    _label(axes, list({(row["method"], row["stored_bytes"], row["kl_mean"]): row for row in rows}.values()))
    axes.set_xlabel("weight files, MB")
    axes.set_ylabel(report.get("distortion", "KL to the original, nats per token"))
    judging = "positions" if "images" in report else "tokens"  # a part of a pipeline is named with its folder
    name = report["model"] if "images" in report else Path(report["model"]).name
    axes.set_title(f"{name}: {report['eval_tokens']} held-out {judging}", fontsize=10)
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=150)
    return True


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights at least `gap` apart, in the same order and as near to the given ones as a stack allows.

    >>> spread([1.0, 1.0, 5.0], 1.0)
    [0.5, 1.5, 5.0]
    """
    placed: list[list[float]] = []  # stacks: [sum of wished bottoms, labels]
    order = sorted(range(len(heights)), key=heights.__getitem__)
    for index in order:
        placed.append([heights[index], 1.0])
        while len(placed) > 1 and _bottom(placed[-2], gap) + placed[-2][1] * gap > _bottom(placed[-1], gap):
            above = placed.pop()
            placed[-1] = [placed[-1][0] + above[0], placed[-1][1] + above[1]]
    places = [_bottom(stack, gap) + step * gap for stack in placed for step in range(int(stack[1]))]
    found = dict(zip(order, places, strict=True))
    return [found[index] for index in range(len(heights))]


def _bottom(stack: list[float], gap: float) -> float:
    total, count = stack
    return total / count - (count - 1) / 2 * gap


def _label(axes: Any, rows: list[dict[str, Any]]) -> None:
    """Names to the right of points; points of about the same size share a column, with lines to them."""
    sizes = [_megabytes(row) for row in rows]
    width = (max(sizes) - min(sizes)) or max(sizes) / 10
    axes.set_xlim(min(sizes) - 0.08 * width, max(sizes) + 0.28 * width)
    low, high = (math.log10(limit) for limit in axes.get_ylim())
    columns: list[list[dict[str, Any]]] = []
    for row in sorted(rows, key=_megabytes):
        if columns and _megabytes(row) - _megabytes(columns[-1][-1]) < TOGETHER * width:
            columns[-1].append(row)
        else:
            columns.append([row])
    for column in columns:
        place = max(map(_megabytes, column)) + 0.03 * width
        heights = spread([math.log10(row["kl_mean"]) for row in column], GAP * (high - low))
        for row, height in zip(column, heights, strict=True):
            axes.annotate(
                f"{row['method']} {row['bits']}",
                (_megabytes(row), row["kl_mean"]),
                (place, 10**height),
                fontsize=8,
                va="center",
                bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkB": 3},
            )


def _megabytes(row: dict[str, Any]) -> float:
    return row["stored_bytes"] / 1e6
