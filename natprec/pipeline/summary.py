"""The table at the end of a run: what a person wants to know, in the order of asking.

One layout for all commands: labels on the left, values on the right, at most 100 columns wide.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from natprec.config import DISTORTIONS
from natprec.costs import PREFILL_TOKENS
from natprec.costs.choose import BYTES
from natprec.distortions import named
from natprec.evaluation.conclude import promised
from natprec.evaluation.verdict import FAIL, PASS, WITHIN_NOISE
from natprec.evaluation.verification import Verification
from natprec.formats.gpus import ANY
from natprec.formats.offers import OFFERS
from natprec.measurement import Measurement
from natprec.models.routing import MIN_TOKENS
from natprec.solver import Plan
from natprec.solver.choices import UNQUANTIZED_BITS
from natprec.solver.needs import Needs, needs_of, used_of
from natprec.utils.human import human_bytes, human_count, human_seconds

LABEL = 17
BAR = 32

VERDICTS = {
    PASS: ("PASS", "bold green"),
    WITHIN_NOISE: ("PASS WITHIN NOISE", "bold yellow"),
    FAIL: ("FAIL", "bold red"),
}
"""Verdict → the word and its style."""


def plan_table(plan: Plan, stored_on_disk: int | None = None) -> RenderableType:
    """Bits per weight as a histogram, size (forecast and, once written, on disk), predicted distortion."""
    rows = _rows()
    rows.add_row("engine", plan.engine + (f" on {plan.gpu}" if plan.gpu else ""))
    needs = plan.needs or needs_of(plan.engine, ANY, used_of(plan))
    if needs is not None:
        _add_needs(rows, plan, needs)
    elif plan.engine in OFFERS and plan.rounded_inputs:
        rows.add_row("caution", f"some kernels of {plan.engine} round these inputs otherwise: natprec check tells")
    counts = plan.histogram()
    total = sum(counts.values())
    for number, (bits, count) in enumerate(counts.items()):
        kept = "  unquantized" if bits == UNQUANTIZED_BITS else ""
        bar = "█" * max(1, round(BAR * count / total))
        line = f"{bits:>2} bits {human_count(count):>8} {count / total:>6.1%}  {bar}{kept}"
        rows.add_row("weights" if number == 0 else "", line)
    rows.add_row(
        "bits per weight",
        f"{plan.bits_per_weight:.3f} where quantized, {plan.bits_per_weight_total:.3f} over all; scales included",
    )
    for bits in sorted({choice.bits for choice in plan.inputs.values()}):
        count = sum(choice.bits == bits for choice in plan.inputs.values())
        rows.add_row("activations", f"{bits} bits into {count} of {len(plan.inputs)} groups of Linears")
    if plan.cache is not None:
        rows.add_row("keys and values", plan.cache.format.name)
    experts = [choice.tokens for choice in plan.sites.values() if choice.tokens is not None]
    if experts:
        few = plan.few_tokens
        line = f"{len(experts)} weights, measured on {min(experts)} to {max(experts)} tokens"
        rows.add_row("experts", line + (f"; {len(few)} on fewer than {MIN_TOKENS}, as others" if few else ""))
    if plan.source_bytes is not None:
        kind = f", quantized already: {plan.source_format}" if plan.source_format else ""
        rows.add_row("given", f"{human_bytes(plan.source_bytes)}{kind}")
    rows.add_row("at 16 bits", human_bytes(plan.stored_bytes_reference))
    rows.add_row("stored", _stored(plan, stored_on_disk))
    if plan.minimize != BYTES and plan.cost is not None:
        _add_cost(rows, plan, plan.cost)
    _add_predicted(rows, plan)
    if plan.uniform is not None and plan.kl_uniform is not None:
        than = "larger" if plan.minimize == BYTES else "dearer"
        rows.add_row("", f"uniform {plan.uniform}, no {than}: {plan.kl_uniform:.4g}")
    return rows


def result_table(
    measurement: Measurement, plan: Plan, verification: Verification, seconds: Mapping[str, float]
) -> RenderableType:
    """Plan, verification and verdict, estimator check and times."""
    rest = _rows()
    for number, (name, fmt, fisher, exact) in enumerate(measurement.header.checks):
        ratio = f"{fisher / exact:.2f}" if exact > 0 else "   -"
        rest.add_row("Fisher / exact" if number == 0 else "", f"{ratio}  {_short(name, 44)} {fmt}")
    for number, (stage, spent) in enumerate([*seconds.items(), ("all", sum(seconds.values()))]):
        rest.add_row("time" if number == 0 else "", f"{human_seconds(spent):>10}  {stage}")
    return Group(
        plan_table(plan, verification.stored_bytes), verification_table(plan, verification, predicted=False), rest
    )


def verification_table(plan: Plan, verification: Verification, predicted: bool = True) -> RenderableType:
    """Distortion with its interval, the verdict, and where a next token is predicted perplexity and agreement."""
    rows = _rows()
    if predicted:
        _add_predicted(rows, plan)
    _add_measured(rows, verification, promised(plan), plan)
    return rows


def foreign_table(name: str, verification: Verification) -> RenderableType:
    """The verification of a checkpoint by another tool, which has no plan."""
    rows = _rows()
    rows.add_row("checkpoint", f"{name}, not written by natprec")
    rows.add_row(
        "bits per weight", f"{verification.bits_per_weight:.3f}, {verification.bits_per_weight_total:.3f} over all"
    )
    rows.add_row("stored", human_bytes(verification.stored_bytes))
    _add_measured(rows, verification, verification.eps)
    return rows


def _add_measured(rows: Table, verification: Verification, promise: float | None, plan: Plan | None = None) -> None:
    label, unit, terms = _words(verification.distortion)
    rows.add_row(
        f"{label} measured", _interval(verification.kl_mean, verification.kl_ci95, unit, verification.confidence)
    )
    rows.add_row("", f"99% of {terms} below {verification.kl_p99:.4g}")
    if verification.gpu is not None:
        engine = "vllm" if plan is None else plan.engine
        rows.add_row("arithmetic", f"of {engine} on {verification.gpu}")
    rows.add_row("verdict", _verdict(verification, promise, plan))
    for line in _first(verification) + _texts(verification):
        rows.add_row("", line)
    before, after = verification.perplexity_reference, verification.perplexity_quantized
    if before is not None and after is not None:
        rows.add_row("perplexity", f"{before:.3f} → {after:.3f} ({after / before - 1:+.2%})")
        if plan is not None and plan.natural_bits is not None:
            rows.add_row("natural precision", natural_line(plan.natural_bits, before))
    if verification.top1_agreement is not None:
        number, what = verification.counted(verification.tokens)
        rows.add_row(
            f"same top {verification.choice}", f"{verification.top1_agreement:.2%} of {number} held-out {what}"
        )


def serving_line(engine: str, folder: str) -> str:
    """The command that serves the checkpoint, with the version that was tried: see docs/serve.md.

    >>> serving_line("vllm", "out")
    'run it: vllm serve out (0.25.1 was run), or natprec generate out'
    """
    return "run it: " + {
        "vllm": f"vllm serve {folder} (0.25.1 was run), or natprec generate {folder}",
        "sglang": f"python -m sglang.launch_server --model-path {folder}, or natprec generate {folder}",
        "llama.cpp": f"llama-server -m {folder}/model.gguf",
        "bitsandbytes": f"AutoModelForCausalLM.from_pretrained({folder!r}), beside bitsandbytes (QLoRA: docs/qlora.md)",
    }.get(engine, f"natprec generate {folder}, or natprec serve {folder}")


def natural_line(natural_bits: float, perplexity: float) -> str:
    """The mean natural precision beside what a next token tells (T17): two figures to compare, no law between them.

    >>> natural_line(4.5, 16)
    '4.50 bits (mean b*); next-token entropy 4.00 bits'
    """
    entropy = math.log2(perplexity)
    return f"{natural_bits:.2f} bits (mean b*); next-token entropy {entropy:.2f} bits"


def _rows() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(min_width=LABEL, style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _stored(plan: Plan, on_disk: int | None) -> str:
    text = f"{human_bytes(plan.stored_bytes)} forecast"
    if on_disk is not None:
        text += f", {human_bytes(on_disk)} on disk"
    size = on_disk or plan.stored_bytes
    given = f", {size / plan.source_bytes:.1%} of the file given" if plan.source_format and plan.source_bytes else ""
    return f"{text}: {size / plan.stored_bytes_reference:.1%} of 16 bits{given}"


def _words(distortion: str) -> tuple[str, str, str]:
    """What a distortion is called, its unit, and what it is averaged over."""
    if distortion not in DISTORTIONS:  # one of the user's own
        return distortion, "", "terms"
    found = named(distortion)
    return found.label, found.unit, found.term


def _add_predicted(rows: Table, plan: Plan) -> None:
    label, unit, _ = _words(plan.distortion)
    rows.add_row(f"{label} predicted", _interval(plan.kl_predicted, plan.kl_predicted_ci95, unit))
    if plan.kl_joint is not None and plan.joint_ci95 is not None:
        rows.add_row("", f"sum over sites {plan.kl_sum:.4g}; joint {_interval(plan.kl_joint, plan.joint_ci95, '')}")


def _add_cost(rows: Table, plan: Plan, cost: float) -> None:
    error = "of unknown error" if plan.cost_error is None else f"within {plan.cost_error:.1%} as far as known"
    of = {"decode": "a new token", "prefill": f"a prompt of {PREFILL_TOKENS} tokens", "joules": "a new token"}
    rows.add_row("least " + plan.minimize, f"{cost:.6g} {plan.cost_unit} for {of[plan.minimize]}, {error}")
    source = f"{plan.cost_source}: {plan.cost_table}" + (f", digest {plan.cost_digest}" if plan.cost_digest else "")
    rows.add_row("", source + ("" if plan.cost_whole else "; its products alone"))


def _add_needs(rows: Table, plan: Plan, needs: Needs) -> None:
    loads = "loads it" if needs.transformers else "does not load it"
    rows.add_row("needs", f"{plan.engine} {needs.engine_version} or newer; plain transformers {loads}")
    if needs.untested:
        rows.add_row("", f"no run of {plan.engine} has loaded {', '.join(needs.untested)}")


def _interval(value: float, interval: tuple[float, float], unit: str, confidence: float = 0.95) -> str:
    return f"{value:.4g} {unit}".rstrip() + f" ({100 * confidence:g}%: {interval[0]:.4g} to {interval[1]:.4g})"


def _verdict(verification: Verification, promise: float | None, plan: Plan | None) -> Text:
    if verification.verdict is None or promise is None:
        return Text("none: no tolerance was asked for")
    word, style = VERDICTS[verification.verdict]
    label, (_, high) = _words(verification.distortion)[0], verification.kl_ci95
    text = Text(word, style=style)
    if verification.verdict == WITHIN_NOISE:
        text.append(f"  {label} {verification.kl_mean:.4g} <= {promise:g} < {high:.4g}", style="default")
    elif verification.verdict == PASS:
        text.append(f"  {label} {verification.kl_mean:.4g}, at most {high:.4g} <= {promise:g}", style="default")
    else:
        text.append(f"  {label} {verification.kl_mean:.4g} > {promise:g}", style="default")
    if plan is not None and plan.eps_scope == "site":
        text.append(f" = {plan.eps:g} at each of {len(plan.sites)} sites", style="default")
    return text


def _first(verification: Verification) -> list[str]:
    """The first verdict, where a correction followed."""
    first = verification.first_verdict
    if not verification.corrections or first is None:
        return []
    return [f"after one correction; the first plan measured {first.kl_mean:.4g}"]


def _texts(verification: Verification) -> list[str]:
    """What judged; of several texts each with its mean."""
    texts = verification.texts
    if len(texts) < 2:
        number, what = verification.counted(verification.tokens)
        return [f"on {number} {what} of {verification.data}"]
    return [f"{each.kl_mean:.4g} on {each.tokens} tokens of {each.name}" for each in texts]


def _short(name: str, width: int) -> str:
    """The end of a long module path, which tells more than its beginning."""
    return name if len(name) <= width else "…" + name[1 - width :]
