"""Ladders as tables of at most 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table

from natprec.benchmark.ladder import MeasuredRung
from natprec.costs.choose import BYTES
from natprec.pipeline.ladder import Rung as Checkpoint
from natprec.solver.ladder import Rung
from natprec.utils.human import human_bytes


def planned_table(rungs: Sequence[Rung]) -> Table:
    """The cost of each tolerance; the last column names the format that costs as much in every Linear.

    Where something else than bytes is minimised: distortion, bytes and that cost of both kinds of plans, and which of
    them another plan beats in all three.
    """
    if any(rung.minimize != BYTES for rung in rungs):
        return _costs_table(rungs)
    table = _table("eps", "bits", "stored", "of 16 bits", "KL predicted", "perplexity", right=6)
    table.add_column("about as good as")
    for rung in rungs:
        ratio = "-" if rung.perplexity_increase is None else f"{rung.perplexity_increase:+.2%}"
        table.add_row(
            f"{rung.eps:g}", f"{rung.bits:.2f}", human_bytes(rung.stored_bytes), f"{rung.stored_fraction:.1%}",
            f"{rung.kl_predicted:.4g}", ratio, rung.like or "-",
        )  # fmt: skip
    return table


def _costs_table(rungs: Sequence[Rung]) -> Table:
    table = _table("eps", "least", "bits", "stored", "KL predicted", rungs[0].cost_unit, "error", right=7)
    table.add_column("")
    for rung in rungs:
        table.add_row(
            f"{rung.eps:g}", rung.minimize, f"{rung.bits:.2f}", human_bytes(rung.stored_bytes),
            f"{rung.kl_predicted:.4g}", f"{rung.cost:.6g}",
            "?" if rung.cost_error is None else f"{rung.cost_error:.1%}", "dominated" if rung.dominated else "",
        )  # fmt: skip
    return table


def written_table(rungs: Sequence[Checkpoint]) -> Table:
    """The checkpoints of a ladder, with what was measured."""
    table = _table("folder", "bits", "stored", "KL measured", "perplexity", "same top token", right=6)
    for rung in rungs:
        found = rung.verification
        before, after = found.perplexity_reference, found.perplexity_quantized
        ratio = "-" if before is None or after is None else f"{after / before - 1:+.2%}"
        top = "-" if found.top1_agreement is None else f"{found.top1_agreement:.2%}"
        table.add_row(
            rung.name, f"{rung.plan.bits_per_weight:.3f}", human_bytes(found.stored_bytes), f"{found.kl_mean:.4g}",
            ratio, top,
        )  # fmt: skip
    return table


def measured_table(rungs: Iterable[MeasuredRung]) -> Table:
    """Checkpoints beside a measurement; flips are known where `natprec eval` has asked."""
    table = _table("checkpoint", "bits", "stored", "KL", "perplexity", "same top token", "flips", right=7)
    for rung in rungs:
        shares = (
            "-" if value is None else form.format(value)
            for form, value in (
                ("{:+.2%}", rung.perplexity_increase), ("{:.2%}", rung.top1_agreement), ("{:.2%}", rung.flips),
            )
        )  # fmt: skip
        table.add_row(rung.name, f"{rung.bits:.2f}", human_bytes(rung.stored_bytes), f"{rung.kl_mean:.4g}", *shares)
    return table


def _table(*headers: str, right: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number < right else "left", no_wrap=True)
    return table
