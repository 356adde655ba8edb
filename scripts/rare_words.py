"""Rare words: does the promise hold where the calibration text never went?

    python scripts/rare_words.py --data valid.txt --eval-data test.raw.txt --eps 0.05

The plan quantizes the embedding too (engine natprec). It is judged on ordinary held-out windows, on
the windows with the most tokens that calibration never saw, and on running lists of such words. The
embedding's predicted KL is shown with and without the care for rows that were never touched.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import torch
from torch import Tensor

from natprec.evaluation.verify import compare
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.pipeline import round_to_plan
from natprec.progress import Stages
from natprec.request import Request, open_subject
from natprec.rounding import restore, snapshot
from natprec.subject import Subject
from natprec.texts import calibration_tokens, held_out_tokens


def unseen_windows(windows: Tensor, seen: Tensor, count: int) -> Tensor:
    """The windows with the largest share of unseen tokens."""
    share = (~seen[windows]).float().mean(1)
    return windows[share.argsort(descending=True)[:count]]


def unseen_lists(subject: Subject, text: str, seen: Tensor, count: int, length: int) -> Tensor:
    """Windows of words whose every token is unseen, in the order of the text, each word once."""
    tokens: list[int] = []
    for word in dict.fromkeys(re.findall(r"\w+", text)):
        ids = subject.tokenizer(" " + word, add_special_tokens=False).input_ids
        if not seen[torch.tensor(ids)].any():
            tokens += ids
    usable = len(tokens) // length
    return torch.tensor(tokens[: usable * length]).view(usable, length)[:count]


def main() -> None:
    """Judge one plan on three texts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--eps", type=float, nargs="+", default=[0.3, 0.05])
    parser.add_argument("--rounding", default="rtn")
    parser.add_argument("--measurement", type=Path, help="use this file instead of measuring")
    options = parser.parse_args()
    stages = Stages()
    request = Request(options.model, eps=1.0, data=options.data, eval_data=str(options.eval_data), eval_tokens=4096)
    subject = open_subject(request, stages)
    ids = calibration_tokens(request, subject, stages)
    measurement = Measurement.load(options.measurement) if options.measurement else measure(subject, ids, stages=stages)
    seen = torch.zeros(subject.model.config.vocab_size, dtype=torch.bool)
    seen[ids.unique()] = True
    many = Request(options.model, eps=1.0, eval_data=str(options.eval_data), eval_tokens=200_000)
    pool = held_out_tokens(many, subject, stages)
    texts = {
        "held-out": held_out_tokens(request, subject, stages),
        "rarest windows": unseen_windows(pool, seen, 16),
        "lists of unseen words": unseen_lists(subject, options.eval_data.read_text(), seen, 16, request.length),
    }
    original = snapshot(subject.model)
    results = []
    for eps in options.eps:
        plan = measurement.solve(eps=eps, engine="natprec")
        embedding = plan.sites[subject.sites[0].name]
        for name, windows in texts.items():
            with torch.no_grad():
                expected = [subject.staged.logits(window[None]) for window in windows]
            round_to_plan(subject, plan, ids, options.rounding, Stages(quiet=True))
            it = iter(expected)
            parts = [
                compare(lambda _, it=it: next(it), subject.staged.logits, window[None]).kl.mean() for window in windows
            ]
            restore(subject.model, original)
            kl = float(sum(parts) / len(parts))
            results.append(
                {
                    "text": name,
                    "tokens": windows.numel(),
                    "unseen": float((~seen[windows]).float().mean()),
                    "eps": eps,
                    "embedding": embedding.format.name if embedding.format else None,
                    "embedding_kl": embedding.kl,
                    "predicted": plan.kl_predicted,
                    "measured": kl,
                    "held": kl <= eps,
                }
            )
            print(json.dumps(results[-1]), flush=True)


if __name__ == "__main__":
    main()
