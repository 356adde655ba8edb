"""Rare words: does the promise hold where the calibration text never went?

    python scripts/rare_words.py --data valid.txt --eval-data test.raw.txt --eps 0.05

The plan quantizes the embedding too (engine natprec). It is judged on ordinary held-out windows, on
the windows with the most tokens that calibration never saw, and on running lists of such words; each
text is the held-out text of a run of its own, with the one correction that `natprec quantize` makes.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from natprec.config import QuantizeConfig
from natprec.distortions.divergence import forward_kl
from natprec.evaluation.verify import tightened
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import calibration_parts, calibration_samples, held_out_samples
from natprec.solver import Plan
from natprec.tasks import Samples
from natprec.utils.progress import Stages


def unseen_windows(windows: Samples, seen: Tensor, count: int) -> Samples:
    """The windows with the largest share of unseen tokens."""
    share = (~seen[windows.ids]).float().mean(1)
    return windows[share.argsort(descending=True)[:count]]


def unseen_lists(subject: Subject, text: str, seen: Tensor, count: int, length: int) -> Samples:
    """Windows of words whose every token is unseen, in the order of the text, each word once."""
    tokens: list[int] = []
    for word in dict.fromkeys(re.findall(r"\w+", text)):
        ids = subject.tokenizer(" " + word, add_special_tokens=False).input_ids
        if not seen[torch.tensor(ids)].any():
            tokens += ids
    usable = len(tokens) // length
    return Samples.text(torch.tensor(tokens[: usable * length]).view(usable, length)[:count])


def main() -> None:
    """Judge one plan on three texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.3, 0.05])
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--measurement", type=Path, help="use this file instead of measuring")
    options = parser.parse_args()
    stages = Stages()
    request = QuantizeConfig(
        options.model, eps=1.0, data=options.data, eval_data=str(options.eval_data), eval_tokens=4096
    )
    subject = open_subject(request, stages)
    samples = calibration_samples(request, subject, stages)
    if options.measurement:
        measurement = Measurement.load(options.measurement)
    else:
        measurement = measure(subject, samples, parts=calibration_parts(request, subject), stages=stages)
    seen = torch.zeros(subject.model.config.vocab_size, dtype=torch.bool)
    seen[samples.ids.unique()] = True
    many = QuantizeConfig(options.model, eps=1.0, eval_data=str(options.eval_data), eval_tokens=200_000)
    pool = held_out_samples(many, subject, stages)
    texts = {
        "held-out": held_out_samples(request, subject, stages),
        "rarest windows": unseen_windows(pool, seen, 16),
        "lists of unseen words": unseen_lists(subject, options.eval_data.read_text(), seen, 16, request.length),
    }
    for eps in options.eps:
        plan = measurement.solve(eps=eps, margin=0.05, engine="natprec", rounding=options.rounding)
        first = divergences(subject, plan, samples, options.rounding, texts)
        for name, windows in texts.items():
            row: dict[str, object] = {"text": name, "tokens": windows.tokens, "eps": eps}
            row["unseen"] = float((~seen[windows]).float().mean())
            row["predicted"] = plan.kl_predicted
            row["measured"] = row["finally"] = first[name]
            if first[name] > eps:
                tighter = measurement.solve(
                    eps=eps, eps_solved=tightened(plan, first[name]), engine="natprec", rounding=options.rounding
                )
                row["finally"] = divergences(subject, tighter, samples, options.rounding, {name: windows})[name]
            row["held"] = row["finally"] <= eps  # type: ignore[operator]
            embedding = plan.sites[subject.sites[0].name]
            row["embedding"] = embedding.format.name if embedding.format else None
            row["embedding_kl"] = embedding.kl
            print(json.dumps(row), flush=True)


@torch.no_grad()
def divergences(
    subject: Subject, plan: Plan, samples: Samples, rounding: str, texts: dict[str, Samples]
) -> dict[str, float]:
    """KL per token of the rounded model on each text."""
    expected = {name: [subject.segmented.output(window) for window in text.split(1)] for name, text in texts.items()}
    with subject.segmented.weights.hold(subject.model.parameters()):
        round_to_plan(subject, plan, samples, rounding, Stages(quiet=True))
        found = {
            name: [
                float(forward_kl(logits, subject.segmented.output(window)).mean())
                for logits, window in zip(expected[name], text.split(1), strict=True)
            ]
            for name, text in texts.items()
        }
    return {name: sum(values) / len(values) for name, values in found.items()}


if __name__ == "__main__":
    main()
