"""What a card says of a checkpoint: its promise and verdict, its figures, what is quantized, what the KL is."""

from __future__ import annotations

from collections import Counter

from natprec.evaluation.verdict import FAIL, PASS, WITHIN_NOISE
from natprec.evaluation.verification import Verification
from natprec.models.places import ALIASES
from natprec.publishing.contents import REPORT, Contents
from natprec.publishing.front_matter import base_of
from natprec.publishing.markdown import code, section, table, text
from natprec.publishing.wording import words
from natprec.solver import Plan
from natprec.solver.choices import UNQUANTIZED_BITS
from natprec.utils.human import human_bytes

WORDS = {PASS: "PASS", WITHIN_NOISE: "PASS WITHIN NOISE", FAIL: "FAIL"}
"""Verdict → as tables show it."""

HELD_OUT = {
    "tokens": ("Text", "token ids"),
    "images": ("Images", "pixels"),
    "recordings": ("Recordings", "features and token ids"),
}
"""What judged → what it is called, and what its digest is of."""


def between(interval: tuple[float, float]) -> str:
    """An interval's ends."""
    return f"{interval[0]:.4g} to {interval[1]:.4g}"


def original(contents: Contents) -> str:
    """The original as a page names it: by its repository and commit where that was read, else by name and digest."""
    base, plan = base_of(contents), contents.plan
    if base is None:
        package, file, _ = ALIASES.get(plan.model, ("", plan.model, ""))
        of_package = f" of the Python package {code(package)}" if package else ""
        values = "the float values of " if file.endswith(".gguf") else ""
        return f"{values}{code(file)}{of_package} (weights with digest {code(plan.model_digest)})"
    seen = "" if base.compared else ", as whoever published it says"
    return f"[{text(base.id)}](https://huggingface.co/{base.id}) (commit {code(base.revision)}{seen})"


def verdict_line(contents: Contents) -> str:
    """The first line: promise and verdict, in one sentence."""
    plan, found = contents.plan, contents.verification
    if found is None:
        target = "a size" if plan.eps is None else f"{words(plan.distortion)[0]} ≤ {plan.eps:g}"
        return f"**NOT VERIFIED.** The plan was made for {target}; nobody has measured this checkpoint."
    label, unit, _ = words(found.distortion)
    measured = f"{label} {found.kl_mean:.4g} {unit}".rstrip()
    high = found.kl_ci95[1]
    interval = f"{100 * found.confidence:g} % interval {between(found.kl_ci95)}"
    number, what = found.counted(found.tokens)
    on = f"on {number:,} held-out {what} of {code(found.data)}"
    promise, verdict = contents.promise, contents.verdict
    if verdict is None or promise is None:
        return f"No tolerance was asked for, only a size. Measured: {measured} ({interval}), {on}."
    relation = {
        PASS: f"at most {high:.4g} is within the promised {promise:g}",
        WITHIN_NOISE: f"the mean is within the promised {promise:g}, the interval's upper end is not",
        FAIL: f"more than the promised {promise:g}",
    }[verdict]
    return f"**{WORDS[verdict]}**: {measured} ({interval}), {relation}, {on}."


def figures(contents: Contents) -> str:
    """The original against this checkpoint."""
    plan, found = contents.plan, contents.verification
    stored = plan.stored_bytes if found is None else found.stored_bytes
    before = plan.stored_bytes_reference
    rows = [
        ("stored" if found is not None else "stored (forecast)", human_bytes(before),
         f"{human_bytes(stored)} ({stored / before:.1%})"),
        ("bits per quantized weight, scales included", "16", f"{plan.bits_per_weight:.3f}"),
        ("bits per weight over all", "16", f"{plan.bits_per_weight_total:.3f}"),
    ]  # fmt: skip
    if plan.source_bytes and plan.source_format:
        rows.insert(1, (f"beside the {plan.source_format} file given", human_bytes(plan.source_bytes),
                        f"{stored / plan.source_bytes:.1%}"))  # fmt: skip
    if found is not None:
        rows += _measured(found)
    parts = [table(("", "original at 16 bits", "this checkpoint"), rows)]
    if found is not None and len(found.texts) > 1:
        label, unit, _ = words(found.distortion)
        texts = [
            (code(each.name), f"{each.tokens:,}", f"{each.kl_mean:.4g}", between(each.kl_ci95)) for each in found.texts
        ]
        parts.append(f"{label} of each text that judged; the largest interval decides:")
        parts.append(table(("text", "tokens", f"{label}, {unit}".rstrip(", "), "interval"), texts))
    if found is not None and found.corrections and found.first_verdict is not None:
        first = found.first_verdict.kl_mean
        parts.append(f"The first plan measured {first:.4g}; natprec corrected it once and judged it on other text.")
    if contents.report:
        more = "" if contents.header is None else " and solves any other tolerance by itself"
        parts.append(
            f"[{REPORT}]({REPORT}) shows the bits of every weight{more}: download it and open it in a browser."
        )
    return section("Figures", *parts)


def _measured(found: Verification) -> list[tuple[str, str, str]]:
    label, unit, terms = words(found.distortion)
    rows = [
        (f"{label} to the original, {unit}".rstrip(", "), "0", f"{found.kl_mean:.4g} ({between(found.kl_ci95)})"),
        (f"99 % of {terms} below", "0", f"{found.kl_p99:.4g}"),
    ]
    if found.perplexity_reference is not None and found.perplexity_quantized is not None:
        rows.append(("perplexity", f"{found.perplexity_reference:.3f}", f"{found.perplexity_quantized:.3f}"))
    if found.top1_agreement is not None:
        rows.append(("same likeliest token", "100%", f"{found.top1_agreement:.2%}"))
    return rows


def scope(contents: Contents) -> str:
    """What is quantized, and what is not."""
    plan = contents.plan
    counts, elements = Counter[str](), Counter[str]()
    for choice in plan.sites.values():
        name = choice.format.name if choice.format is not None else f"{plan.storage_dtype} (unquantized)"
        counts[name] += 1
        elements[name] += choice.elements
    total = sum(elements.values())
    rows = [(code(name), str(counts[name]), f"{count / total:.1%}") for name, count in elements.most_common()]
    left = [name for name, choice in plan.sites.items() if choice.format is None]
    shown = ", ".join(code(name) for name in left[:6]) + (f" and {len(left) - 6} more" if len(left) > 6 else "")
    inputs = Counter(choice.bits for choice in plan.inputs.values())
    rounded = ", ".join(f"{bits} bits for {count} groups" for bits, count in sorted(inputs.items()))
    facts = [
        f"- Weights that stay at 16 bits: {shown or 'none of those that can be quantized'}; norms and biases always.",
        f"- Inputs of Linears: {rounded if min(inputs, default=UNQUANTIZED_BITS) < UNQUANTIZED_BITS else '16 bits'}.",
        f"- Keys and values in the cache: {code(plan.cache.format.name) if plan.cache is not None else '16 bits'}.",
        f"- Rounding: {plan.rounding}"
        + ("" if plan.rotation is None else ", after a Hadamard rotation that is folded into the weights")
        + ".",
    ]
    if plan.few_tokens:
        facts.append(
            f"- {len(plan.few_tokens)} weights of experts saw too few calibration tokens to be measured alone."
        )
    return section("What is quantized", table(("format", "weight matrices", "of all weights"), rows), "\n".join(facts))


def meaning(contents: Contents) -> str:
    """What the distortion is of: direction, unit, text, and whose arithmetic."""
    found, plan = contents.verification, contents.plan
    label, unit, terms = words(plan.distortion)
    lines = [_definition(plan, label, unit, terms)]
    if found is not None:
        number, what = found.counted(found.tokens)
        length = f", in sequences of {found.length}" if found.length and what == "tokens" else ""
        kind, values = HELD_OUT.get(what, ("Samples", "values"))
        lines.append(
            f"{kind}: {number:,} {what} of {code(found.data)}{length}, {values} with digest "
            f"{code(found.data_digest)}; none of it was measured on. Both models ran in float32, so the figure is the "
            "quantization's. A kernel that computes in 16 bits adds its own rounding."
        )
        if found.gpu is not None:
            lines.append(f"Arithmetic: what {text(plan.engine)} runs on {code(found.gpu)}.")
    return section(f"What the {label} is", *lines)


def _definition(plan: Plan, label: str, unit: str, terms: str) -> str:
    if plan.distortion == "kl":
        return (
            "KL(original ‖ this checkpoint) of the next token's distribution, over the whole vocabulary, in nats, and "
            f"its mean over {terms}. 0: the same predictions. It is no score of a task."
        )
    if plan.distortion.startswith("embedding"):
        return (
            f"{unit}, with e the embedding of the original and e' that of this checkpoint, both of length 1 unless the "
            f"model's own modules say otherwise; the mean over {terms}. 0: the same embeddings."
        )
    of_unit = f", in {unit}" if unit else ""
    return f"{text(label)} between the original and this checkpoint{of_unit}, the mean over {terms}."
