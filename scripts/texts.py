"""What a promise is worth on other texts: measured / eps over kinds of text, tolerances and margins.

    python scripts/texts.py --text play=play.txt --text code=code.txt --calibration none --calibration half.txt

Measures the model once for each calibration text (`none`: the model writes it). For each tolerance and margin it
solves, rounds a copy with GPTQ in memory, and compares it with the original on each text, and on what
`natprec quantize` would judge without a text. Prints a table of measured / eps, the stored bytes beside those of margin
0.05, and one JSON list.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from natprec.config import MARGIN, QuantizeConfig
from natprec.data.readers import read_text
from natprec.evaluation.verification import Comparison, compare, joined
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline.held_out import held_out
from natprec.pipeline.quantize import round_to_plan
from natprec.pipeline.request import open_subject, solve_for
from natprec.pipeline.samples import calibration_parts, calibration_samples
from natprec.tasks import Samples
from natprec.utils.progress import Stages

BASE = 0.05
"""The margin that stored bytes are compared with."""


def main() -> None:
    """Each calibration text, tolerance and margin, on every text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE", help="a text that judges")
    parser.add_argument("--calibration", action="append", metavar="FILE", help="none, or a text to measure on")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.03, 0.01])
    parser.add_argument("--margin", type=float, nargs="+", default=[BASE, MARGIN, 0.3])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=32_768, help="tokens of each text")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args()
    stages, rows = Stages(), []
    base = QuantizeConfig(options.model, eps=1.0, engine=options.engine, tokens=options.tokens)
    subject = open_subject(base, stages)
    copied = Subject.in_memory(copy.deepcopy(subject.model), subject.tokenizer)
    texts = {name: _read(subject, file, options.eval_tokens) for name, file in (t.split("=", 1) for t in options.text)}
    own = held_out(base, subject, stages).part(0)
    texts |= {each.name: taken for each in own if (taken := each.take(options.eval_tokens // 2)) is not None}
    for calibration in options.calibration or ["none"]:
        config = replace(base, data=None if calibration == "none" else calibration)
        samples = calibration_samples(config, subject, stages)
        found = measure(subject, samples, config, parts=calibration_parts(config, subject), stages=stages)
        for eps in options.eps:
            for margin in dict.fromkeys([BASE, *options.margin]):
                asked = replace(config, eps=eps, margin=margin)
                rows += _judged(subject, copied, found, asked, samples, texts, calibration)
    _table(rows)
    print(json.dumps(rows))
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1))


def _read(subject: Subject, file: str, tokens: int) -> Samples:
    """Windows of a whole text."""
    return read_text(
        subject.tokenizer, file, sequences=tokens // 256, length=256, split="held-out", model=subject.model, least=8
    )


def _judged(
    subject: Subject,
    copied: Subject,
    found: Measurement,
    config: QuantizeConfig,
    samples: Samples,
    texts: dict[str, Samples],
    calibration: str,
) -> list[dict[str, Any]]:
    """A row for each text, of one plan."""
    plan, rows = solve_for(config, found), []
    with copied.segmented.weights.hold(copied.model.parameters()), torch.no_grad():
        round_to_plan(copied, plan, samples, config.rounding, Stages(quiet=True))
        for name, judging in texts.items():
            parts: list[Comparison] = []
            for part in judging.split():
                parts.append(compare(subject.segmented.output, copied.segmented.output, part))
            summary = joined(parts).summary()
            rows.append({
                "calibration": calibration, "text": name, "eps": config.eps, "margin": config.margin,
                "predicted": plan.kl_predicted, "measured": summary["kl_mean"], "ci95": summary["kl_ci95"],
                "measured_over_eps": summary["kl_mean"] / (config.eps or 1.0),
                "measured_over_predicted": summary["kl_mean"] / plan.kl_predicted,
                "stored_bytes": plan.stored_bytes, "tokens": judging.tokens,
            })  # fmt: skip
            print(json.dumps(rows[-1]), flush=True)
    return rows


def _table(rows: list[dict[str, Any]]) -> None:
    base = {(row["calibration"], row["eps"]): row["stored_bytes"] for row in rows if row["margin"] == BASE}
    print("| calibrated on | text | eps | margin | measured / eps | bytes |\n|---|---|---|---|---|---|")
    for row in rows:
        more = row["stored_bytes"] / base[row["calibration"], row["eps"]] - 1
        print(
            f"| {Path(row['calibration']).name} | {row['text']} | {row['eps']:g} | {row['margin']:g} | "
            f"{row['measured_over_eps']:.3f} | {more:+.1%} |"
        )


if __name__ == "__main__":
    main()
