"""The landscape as a picture: bits over depth, what is claimed as a band, what was measured as a line per tolerance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLOURS = ("#7fb3d5", "#2e86c1", "#1b4f72")
"""From the loosest tolerance to the tightest."""
CLAIMED = "#f0b27a"
MARKS = {"supported": ("✓", "#1e8449"), "refuted": ("✗", "#b03a2e"), "depends on the tolerance": ("?", "#b7950b")}


def draw(value: dict[str, Any], file: Path) -> bool:
    """A PNG or SVG of what `natprec landscape --json` prints, a panel for each network; False without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    several = [(each, [row for row in value["rows"] if row["network"] == each["name"]]) for each in value["networks"]]
    widths = [max(4, len(rows)) for _, rows in several]
    figure = Figure(figsize=(2.5 + 0.55 * sum(widths), 6), layout="constrained")
    panels = figure.subplots(1, len(several), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, (network, rows) in zip(panels, several, strict=True):
        _panel(axes, network, rows, value["tolerances_db"])
    panels[0].set_ylabel("bits that a tensor needs")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize=9, frameon=False)
    figure.supxlabel(
        "depth, from input to output; " + ", ".join(f"{mark} {word}" for word, (mark, _) in MARKS.items()), fontsize=9
    )
    figure.savefig(file, dpi=100)
    return True


def _panel(axes: Any, network: dict[str, Any], rows: Sequence[dict[str, Any]], tolerances: Sequence[int]) -> None:
    for at, row in enumerate(rows):
        low, high = row["claim_bits"]
        label = "claimed (T19)" if at == 0 else None
        axes.fill_between(
            [at - 0.5, at + 0.5], low - 0.5, high + 0.5, color=CLAIMED, alpha=0.45, linewidth=0, label=label
        )
        mark, colour = MARKS[row["verdict"]]
        axes.text(at, 17.2, mark, color=colour, ha="center", fontsize=13, weight="bold")
    for decibels, colour in zip(tolerances, COLOURS, strict=True):
        found = [row["needs"][str(decibels)] for row in rows]
        middle = [each["bits"] for each in found]
        below = [max(0.0, each["bits"] - each["low"]) for each in found]
        above = [max(0.0, each["high"] - each["bits"]) for each in found]
        axes.errorbar(
            range(len(rows)), middle, yerr=[below, above], color=colour, marker="o", markersize=4, linewidth=1.5,
            elinewidth=1, label=f"measured, {decibels} dB",
        )  # fmt: skip
    axes.set_xticks(range(len(rows)), [row["place"] for row in rows], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, 18.2)
    axes.set_yticks(range(0, 17, 2))
    axes.set_title(network["name"], fontsize=10)
    axes.grid(axis="y", alpha=0.25)
