"""The table at the end of a run: what a person wants to know, in the order of asking."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from natprec.evaluation.verify import Verification
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.units import human_bytes, human_seconds

BAR = 40


def plan_table(plan: Plan) -> RenderableType:
    """Bits per weight as a histogram, size, and predicted KL."""
    histogram = Table(title="Bits", box=None, title_justify="left", header_style="bold")
    for heading in ("bits", "weights", "share", ""):
        histogram.add_column(heading, justify="right" if heading != "" else "left")
    total = sum(plan.histogram().values())
    for bits, count in plan.histogram().items():
        kept = "  kept (the engine runs it at 16 bits)" if bits == 16 else ""
        histogram.add_row(
            str(bits), f"{count / 1e6:.1f} M", f"{count / total:.1%}", "█" * round(BAR * count / total) + kept
        )
    facts = _facts()
    facts.add_row("engine", plan.engine)
    facts.add_row("stored", _sizes(plan.stored_bytes, plan.stored_bytes_reference) + " (forecast)")
    facts.add_row("bits per weight", _bits(plan.bits_per_weight, plan.bits_per_weight_total))
    facts.add_row("KL predicted", _interval(plan.kl_predicted, plan.kl_predicted_ci95))
    return Group(histogram, facts)


def result_table(
    measurement: Measurement, plan: Plan, verification: Verification, seconds: dict[str, float]
) -> RenderableType:
    """Plan, estimator check, verification, verdict and times."""
    facts = _facts()
    facts.add_row("stored on disk", _sizes(verification.stored_bytes, verification.stored_bytes_reference))
    for name, fmt, fisher, exact in measurement.header.checks:
        facts.add_row("Fisher / exact", f"{fisher / exact:.2f}  {name} {fmt}" if exact > 0 else f"-  {name}")
    timing = Table(box=None, title="Seconds", title_justify="left", show_header=False)
    for stage, spent in seconds.items():
        timing.add_row(stage, human_seconds(spent))
    timing.add_row("all", human_seconds(sum(seconds.values())))
    return Group(plan_table(plan), facts, verification_table(verification), timing)


def verification_table(verification: Verification) -> RenderableType:
    """KL with its interval, perplexity, agreement, and the verdict."""
    facts = _facts()
    facts.add_row("KL measured", _interval(verification.kl_mean, verification.kl_ci95))
    facts.add_row("KL, 99 % of tokens", f"<= {verification.kl_p99:.4g} nats")
    facts.add_row("perplexity", f"{verification.perplexity_reference:.3f} → {verification.perplexity_quantized:.3f}")
    facts.add_row("same first token", f"{verification.top1_agreement:.2%} of {verification.tokens} held-out tokens")
    if verification.passed is None:
        return Group(facts, Text("no tolerance was promised"))
    word, style = ("PASS", "bold green") if verification.passed else ("FAIL", "bold red")
    sign = "<=" if verification.passed else ">"
    return Group(facts, Text(f"{word}  KL {verification.kl_mean:.4g} {sign} {verification.eps:g}", style=style))


def _facts() -> Table:
    return Table(box=None, show_header=False, pad_edge=False)


def _sizes(after: int, before: int) -> str:
    return f"{human_bytes(before)} → {human_bytes(after)}, {after / before:.1%} of the 16-bit checkpoint"


def _bits(quantized: float, everything: float) -> str:
    return f"{quantized:.3f} where quantized, {everything:.3f} over all (scales included)"


def _interval(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.4g} nats per token, 95 % interval {interval[0]:.4g} to {interval[1]:.4g}"
