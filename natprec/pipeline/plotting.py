"""`natprec.plot`: a measurement, plan or verification as one picture, for a notebook."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.solver.ladder import ladder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot(what: Measurement | Plan | Verification, axes: Axes | None = None) -> Axes:
    """Draw on given axes, or on new ones.

    A measurement: the predicted distortion over the checkpoint's size. A plan: how many weights have each width. A
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
        _measurement(what, drawn)
    elif isinstance(what, Plan):
        _plan(what, drawn)
    else:
        _verification(what, drawn)
    return drawn


def _measurement(found: Measurement, axes: Any) -> None:
    rungs = ladder(found)
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
