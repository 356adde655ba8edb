"""Writes the tables of README.md and docs/results.md from the figures that runs left, and checks that they agree.

    python scripts/tables.py                                   # fill the marked regions
    python scripts/tables.py --check                           # exit code 1 if one differs

A region lies between `<!-- figures NAME -->` and `<!-- /figures -->`. docs/figures holds what it is made of, and each
file says which command wrote it:

    ladder.json     `natprec solve --ladder --json`
    compare.json    `natprec compare --bits 4`
    float.json      scripts/true_float.py
    texts-*.json    scripts/texts.py

README's sample is of the checkpoint behind the card in model_cards/SmolLM2-135M-Instruct-eps0.05.
"""

from __future__ import annotations

import argparse
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from natprec.evaluation.verification import Verification
from natprec.pipeline.summary import plan_table, verification_table
from natprec.solver import Plan

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
SAMPLE = ROOT / "model_cards" / "SmolLM2-135M-Instruct-eps0.05"
PAGES = ("README.md", "docs/results.md")
REGION = re.compile(r"(<!-- figures ([\w -]+) -->\n).*?(<!-- /figures -->)", re.DOTALL)

SHOWN_RUNGS = (0.3, 0.1, 0.05, 0.02, 0.01)
"""Tolerances that README lists."""

SHOWN_METHODS = ("rtn", "gptq", "autoround", "natprec", "natprec-refined", "natprec-transformers")


def main() -> None:
    """Fill, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    differing = 0
    for page in PAGES:
        file = ROOT / page
        text = file.read_text(encoding="utf-8")
        wanted = filled(text)
        if wanted != text:
            differing += 1
            print(f"{page}: {'differs from its figures' if options.check else 'filled'}")
            if not options.check:
                file.write_text(wanted, encoding="utf-8")
    raise SystemExit(1 if options.check and differing else 0)


def figures(name: str) -> dict[str, Any]:
    """A file of docs/figures."""
    found: dict[str, Any] = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    return found


def filled(text: str) -> str:
    """A page with all its regions as the figures say."""
    return REGION.sub(lambda match: match[1] + RENDERED[match[2]]() + match[3], text)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Markdown."""
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n".replace("| --- ", "|---").replace("---| |", "---|") for cells in lines)


def sample() -> str:
    """The table that `natprec quantize` ends with, of the checkpoint behind a model card."""
    plan, found = Plan.load(SAMPLE / "plan.json"), Verification.load(SAMPLE / "verification.json")
    console = Console(file=io.StringIO(), width=80, highlight=False)
    console.print(plan_table(plan, found.stored_bytes))
    console.print(verification_table(plan, found, predicted=False))
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    return "```\n" + "\n".join(lines) + "\n```\n"


def compare_short() -> str:
    """README's rows."""
    rows = {row["method"]: row for row in figures("compare")["rows"]}
    return table(
        ("method", "KL, nats per token", "same top token", "stored"),
        [
            (rows[name]["label"], f"{rows[name]['kl_mean']:g}", f"{rows[name]['top1_agreement']:.1%}",
             f"{rows[name]['stored_bytes'] / 1e6:.2f} MB")
            for name in SHOWN_METHODS
        ],
    )  # fmt: skip


def compare_long() -> str:
    """All rows."""
    found = figures("compare")
    return table(
        ("method", "KL", "KL p99", f"perplexity ({found['perplexity_reference']:g})", "same top token", "stored",
         "seconds"),
        [
            (f"`{row['method']}`: {row['label']}", f"{row['kl_mean']:g}", f"{row['kl_p99']:g}",
             f"{row['perplexity']:.1f}", f"{row['top1_agreement']:.1%}", f"{row['stored_bytes'] / 1e6:.2f} MB",
             f"{row['seconds']:g}")
            for row in found["rows"]
        ],
    )  # fmt: skip


def ladder_short() -> str:
    """README's rungs."""
    rungs = [rung for rung in figures("ladder")["rungs"] if rung["eps"] in SHOWN_RUNGS]
    return table(
        ("eps", "bits per weight", "stored", "perplexity", "about as good as"),
        [
            (f"{rung['eps']:g}", f"{rung['bits']:.2f}", f"{rung['stored_bytes'] / 1e6:.1f} MB",
             f"{rung['perplexity_increase']:+.1%}", rung["like"] or "")
            for rung in rungs
        ],
    )  # fmt: skip


def ladder_long() -> str:
    """What each tolerance costs."""
    return table(
        ("eps", "bits per weight", "stored", "of 16 bits", "KL predicted", "perplexity", "about as good as",
         "its bytes"),
        [
            (f"{rung['eps']:g}", f"{rung['bits']:.2f}", f"{rung['stored_bytes'] / 1e6:.1f} MB",
             f"{rung['stored_fraction']:.1%}", f"{rung['kl_predicted']:.3g}", f"{rung['perplexity_increase']:+.2%}",
             rung["like"] or "", f"{rung['like_bytes'] / 1e6:.1f} MB" if rung["like"] else "")
            for rung in figures("ladder")["rungs"]
        ],
    )  # fmt: skip


def true_float() -> str:
    """Before and after training on."""
    found = figures("float")
    rows = []
    for name, key in (("dequantized from Q4_1", "before"), ("trained on in float32", "after")):
        each = found[key]
        narrow, wide = each["kl"].values()
        rows.append((
            f"SmolLM2-135M-Instruct, {name}", f"{each['lossless']} of {each['linears']}", f"{narrow:.4f}",
            f"{wide:.4f}", f"{each['kl_ratio']:.2f}", f"{each['perplexity']:.2f}",
        ))  # fmt: skip
    head = ("model", "Linears lossless at 4 bits, groups of 32", "KL of int4-g32", "KL of int4-g64", "ratio",
            "perplexity")  # fmt: skip
    return table(head, rows)


def texts(name: str) -> str:
    """Measured / eps of each plan, by text; bytes beside those of margin 0.05."""
    rows = figures(f"texts-{name}")["rows"]
    names = list(dict.fromkeys(row["text"] for row in rows))
    plans = sorted({(row["calibration"], -row["eps"], row["margin"]) for row in rows})
    made = []
    for calibration, eps, margin in plans:
        own = {row["text"]: row for row in rows if (row["calibration"], -row["eps"], row["margin"]) ==
               (calibration, eps, margin)}  # fmt: skip
        cells = tuple(f"{own[text]['measured_over_eps']:.2f}" if text in own else "" for text in names)
        more = next(iter(own.values()))["more_bytes"]
        made.append((calibration, f"{-eps:g}", f"{margin:g}", *cells, f"{more:+.1%}"))
    return table(("calibration text", "eps", "margin", *names, "bytes"), made)


def margins(name: str) -> str:
    """Of each margin: the share of cells within 1.05 eps, the largest, and the bytes."""
    rows = [row for row in figures(f"texts-{name}")["rows"] if not row["text"].startswith("named")]
    made = []
    for margin in sorted({row["margin"] for row in rows}):
        own = [row for row in rows if row["margin"] == margin]
        over = [row["measured_over_eps"] for row in own]
        more = max(row["more_bytes"] for row in own)
        within = sum(value <= 1.05 for value in over)
        made.append((f"{margin:g}", f"{within} of {len(over)}", f"{max(over):.2f}", f"{more:+.1%}"))
    return table(("margin", "cells with measured / eps <= 1.05", "largest measured / eps", "most bytes more"), made)


RENDERED: dict[str, Callable[[], str]] = {
    "sample": sample,
    "compare short": compare_short,
    "compare": compare_long,
    "ladder short": ladder_short,
    "ladder": ladder_long,
    "float": true_float,
    "texts smollm2": lambda: texts("smollm2"),
    "texts minilm": lambda: texts("minilm"),
    "margins smollm2": lambda: margins("smollm2"),
    "margins minilm": lambda: margins("minilm"),
}
"""Name of a region → what belongs into it."""


if __name__ == "__main__":
    main()
