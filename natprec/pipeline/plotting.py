"""`natprec.plot`: a measurement, plan or verification as one picture, for a notebook."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from natprec.costs.choose import BYTES
from natprec.costs.roofline import WORD
from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.solver.ladder import Rung, ladder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(
    what: Measurement | Plan | Verification,
    axes: Axes | None = None,
    *,
    minimize: str = BYTES,
    costs: str | Path | None = None,
    gpu: str | None = None,
) -> Axes:
    """Draw on given axes, or on new ones.

    A measurement: the predicted distortion over the checkpoint's size; with another cost to minimise (see
    `natprec.solve`) over that cost, the size as the size of a mark, and plans that another plan beats in all three
    hollow and crossed out. A plan: how many weights have each width. A
    verification: the distortion on each text with its interval, beside the tolerance.

    Raises:
        InputError: it is none of these, or matplotlib is not installed.
    """
    if not isinstance(what, Measurement | Plan | Verification):
        raise InputError(f"plot draws a measurement, plan or verification, not {type(what).__name__}")
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InputError("plot needs matplotlib; run: pip install matplotlib") from error
    drawn: Any = axes if axes is not None else pyplot.figure(figsize=(6, 3.5), layout="constrained").add_subplot()
    if isinstance(what, Measurement):
        rungs = ladder(what, minimize=minimize, costs=costs, gpu=gpu)
        if minimize == BYTES:
            _measurement(what, rungs, drawn)
        else:
            _three(what, rungs, drawn)
    elif isinstance(what, Plan):
        _plan(what, drawn)
    else:
        _verification(what, drawn)
    return drawn


def _three(found: Measurement, rungs: list[Rung], axes: Any) -> None:
    """Distortion over a cost, with sizes; both kinds of plans."""
    largest = max(rung.stored_bytes for rung in rungs)
    for minimize, color in zip(dict.fromkeys(rung.minimize for rung in rungs), ("C0", "C1"), strict=False):
        for beaten in (False, True):
            own = [rung for rung in rungs if rung.minimize == minimize and rung.dominated is beaten]
            sizes = [120 * rung.stored_bytes / largest for rung in own]
            at = [rung.cost for rung in own], [rung.kl_predicted for rung in own]
            label = f"least {minimize}" + (", dominated" if beaten else "")
            axes.scatter(*at, sizes, facecolors="none" if beaten else color, edgecolors=color, label=label)
            if beaten:
                axes.scatter(*at, sizes, color="black", marker="x", linewidths=0.8)
    source = WORD + ": " if rungs[0].cost_source == "roofline" else ""
    axes.set(yscale="log", xlabel=f"{source}{rungs[0].cost_unit}", ylabel=f"{found.header.distortion} predicted")
    axes.set_title(f"{source}{found.header.model}: marks as large as checkpoints", fontsize=10)
    axes.legend(fontsize=8)


def _measurement(found: Measurement, rungs: list[Rung], axes: Any) -> None:
    axes.plot([rung.stored_bytes / 1e6 for rung in rungs], [rung.kl_predicted for rung in rungs], marker="o")
    for rung in rungs:
        at = (rung.stored_bytes / 1e6, rung.kl_predicted)
        axes.annotate(f"{rung.bits:.2f}", at, xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set(yscale="log", xlabel="checkpoint, MB", ylabel=f"{found.header.distortion} predicted")
    axes.set_title(f"{found.header.model}: bits per quantized weight", fontsize=10)


def _plan(plan: Plan, axes: Any) -> None:
    counts = plan.histogram()
    bars = axes.bar([str(bits) for bits in counts], [count / 1e6 for count in counts.values()])
    axes.bar_label(bars, [f"{count / sum(counts.values()):.0%}" for count in counts.values()], fontsize=8)
    axes.set(xlabel="bits of a code", ylabel="weights, millions")
    axes.set_title(f"{plan.model} for {plan.engine}: {plan.bits_per_weight:.2f} bits per quantized weight", fontsize=10)


def _verification(found: Verification, axes: Any) -> None:
    rows = [(each.name, each.kl_mean, each.kl_ci95) for each in found.texts]
    rows = rows or [(found.data, found.kl_mean, found.kl_ci95)]
    for place, (_, mean, (low, high)) in enumerate(rows):
        axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], fmt="o", capsize=4)
    if found.eps is not None:
        axes.axvline(found.eps, linestyle="--", color="black", label=f"eps {found.eps:g}")
        axes.legend()
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(
        xlabel=f"{found.distortion}, {found.confidence:.0%} interval", xlim=(0, None), ylim=(-0.5, len(rows) - 0.5)
    )
    axes.set_title(found.verdict or "no tolerance", fontsize=10)
