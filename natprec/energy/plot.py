"""Two plots: joules of a token against the batch, and tokens per watt-hour against the KL of a checkpoint.

What was measured is a point with its interval. An estimate is a hatched bar from its low to its high end with the word
ESTIMATE on it, and has no point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from natprec.energy.anchors import Fit, published
from natprec.energy.convert import WORD
from natprec.energy.floors import Floor
from natprec.errors import InputError

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")

WIDE = 1.12
"""Half the width of an estimate's bar on a logarithmic axis, as a factor."""

Named = tuple[str, dict[str, Any]]
"""A name for the legend, and a report of `natprec energy`."""


def by_batch(runs: Sequence[Named], floors: Sequence[tuple[str, Sequence[int], Sequence[Floor]]], file: Path) -> None:
    """Decode's joules of a token against the batch: published rows with their fits, floors, and the user's own runs.

    Args:
        floors: name, batches, and the floor at each; drawn as dashed lines of the bytes moved.
    Raises:
        InputError: matplotlib is not installed.
    """
    figure, axes = _axes()
    for color, each in zip(COLORS, published()["models"], strict=False):
        line = Fit(**each["fit"])
        label = f"{each['model'].partition('/')[2]} ({each['precision']}), {each['gpus']} × {each['gpu']}"
        axes.plot(each["batches"], each["joules_per_token"], "o", color=color, markersize=4, label=label)
        dense = [2 ** (step / 4) for step in range(49)]
        axes.plot(dense, [line.at(batch) for batch in dense], color=color, linewidth=0.7, alpha=0.6)
    for (name, batches, several), style in zip(floors, ("--", "-.", ":"), strict=False):
        axes.plot(batches, [each.bytes_joules for each in several], style, color="0.4", linewidth=1, label=name)
    for name, report in runs:
        for row in report["rows"]:
            if row["phase"] != "prefill":
                draw_row(axes, row["batch"], row, "joules_per_token", name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("sequences at once")
    axes.set_ylabel("joules per token")
    _finish(figure, axes, file)


def by_kl(points: Sequence[tuple[str, float, dict[str, Any]]], file: Path) -> None:
    """Tokens per watt-hour against KL.

    Args:
        points: name, KL in nats per token, and a row of decode.
    Raises:
        InputError: matplotlib is not installed.
    """
    figure, axes = _axes()
    for name, kl, row in points:
        draw_row(axes, kl, row, "tokens_per_wh", name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("KL to the original, nats per token")
    axes.set_ylabel("tokens per watt-hour")
    _finish(figure, axes, file)


def draw_row(axes: Any, x: float, row: dict[str, Any], figure: str, name: str) -> None:
    """One row: a point with its interval where it was measured, else a hatched bar with the word on it."""
    interval = row[f"{figure}_interval"]
    if interval is not None:
        low, high = interval
        axes.fill_between(
            [x / WIDE, x * WIDE], low, high, facecolor="none", edgecolor="0.3", hatch="////", linewidth=0.8
        )
        axes.annotate(f"{name}\n{WORD}", (x, high), (0, 3), textcoords="offset points", ha="center", fontsize=7)
    elif row[figure] is not None:
        spread = row["joules_per_token_ci95"]
        middle = row["joules_per_token"]
        share = (spread[1] - spread[0]) / 2 / middle
        axes.errorbar([x], [row[figure]], yerr=[share * row[figure]], fmt="s", color="k", markersize=5)
        axes.annotate(name, (x, row[figure]), (6, 0), textcoords="offset points", va="center", fontsize=7)


def _axes() -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("matplotlib is not installed; pip install 'natprec[plot]'") from error
    figure = Figure(figsize=(8, 6), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Any, axes: Any, file: Path) -> None:
    import matplotlib

    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7)
    with matplotlib.rc_context({"svg.hashsalt": "natprec", "svg.fonttype": "none"}):
        figure.savefig(file, dpi=150, metadata={"Date": None} if file.suffix == ".svg" else None)
