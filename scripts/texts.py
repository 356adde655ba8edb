"""What a promise is worth on other texts: measured / eps over kinds of text, tolerances and margins.

    python scripts/texts.py --text play=play.txt --calibration none --calibration half.txt --work DIR

Measures the model once for each calibration text (`none`: as `natprec quantize` does without `--data`). For each
tolerance and margin it solves, rounds a copy with GPTQ in memory, and compares it with the original on each text, and
on both parts of the text that a verdict would name. The original's hidden states are computed once for each text.

DIR keeps measurements and the KL of each sequence. A run with the same options goes on where another one stopped, and
with more `--truth-tokens` only what is new is compared. `--out` gets the figures, `scripts/tables.py` prints them.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.config import MARGIN, QuantizeConfig
from natprec.data.ordinary import NAME as ORDINARY
from natprec.data.readers import read_text
from natprec.data.seen import pieces_of, source_digest
from natprec.evaluation.judging import GivenText
from natprec.evaluation.verdict import MOST
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import HiddenStates
from natprec.pipeline.held_out import held_out, spread
from natprec.pipeline.request import open_subject, solve_for
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import calibration_parts, calibration_samples
from natprec.tasks import Samples
from natprec.tasks.samples import fitting
from natprec.utils.atomic_files import write_bytes
from natprec.utils.progress import Stages
from natprec.utils.records import public_name
from natprec.utils.statistics import bootstrap_interval

BASE = 0.05
"""The margin that stored bytes are compared with."""

NAMED = ("named, judged", "named, further")
"""The two parts of the text that a verdict names."""


@dataclass(frozen=True)
class Reference:
    """A text, and what the original makes of it: the hidden states behind its last block, batch by batch."""

    samples: Samples
    hidden: list[Tensor]


def main() -> None:
    """Each calibration text, tolerance and margin, on every text."""
    options = parsed()
    options.work.mkdir(parents=True, exist_ok=True)
    stages = Stages()
    base = QuantizeConfig(
        options.model, eps=1.0, engine=options.engine, tokens=options.tokens, length=options.sequence_length
    )
    subject = open_subject(base, stages)
    copied = Subject.in_memory(copy.deepcopy(subject.model), subject.tokenizer, distortion=subject.distortion)
    cells = Cells(options.work / "cells.json")
    count = max(1, options.truth_tokens // base.length)
    files = dict(text.split("=", 1) for text in options.text)
    texts = {name: referenced(subject, windows(subject, file, base.length)[:count]) for name, file in files.items()}
    for calibration in options.calibration or ["none"]:
        config = replace(base, data=None if calibration == "none" else calibration)
        samples = calibration_samples(config, subject, stages)
        found = measured(config, subject, samples, options.work / f"{label(calibration)}.measurement", stages)
        named = dict(zip(NAMED, named_parts(config, subject, samples, count, stages), strict=True))
        for eps, margin in ((eps, margin) for eps in options.eps for margin in dict.fromkeys([BASE, *options.margin])):
            asked = replace(config, eps=eps, margin=margin)
            judged = texts | named if margin in options.margin else {}  # of `BASE`, the bytes
            judge(subject, copied, found, asked, samples, judged, label(calibration), cells, stages)
    if options.out is not None:
        content = {
            "model": options.model, "command": "scripts/texts.py", "calibration_tokens": options.tokens,
            "texts": {name: {"file": public_name(file), "digest": source_digest(file)} for name, file in files.items()},
            "rows": cells.rows(),
        }  # fmt: skip
        write_bytes(options.out, (json.dumps(content, indent=1) + "\n").encode())


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", action="append", required=True, metavar="NAME=FILE", help="a text that judges")
    parser.add_argument("--calibration", action="append", metavar="FILE", help="none, or a text to measure on")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.1, 0.03, 0.01])
    parser.add_argument("--margin", type=float, nargs="+", default=[BASE, MARGIN, 0.3])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--truth-tokens", type=int, default=MOST, help="tokens of each text")
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--work", type=Path, required=True, help="folder of what is kept between runs")
    parser.add_argument("--out", type=Path, help="write the figures here")
    return parser.parse_args()


class Cells:
    """The KL of each sequence, by calibration text, tolerance, margin and text; kept in a file."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._found: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}

    def of(self, plan: dict[str, Any], text: str) -> dict[str, Any]:
        """The cell of a plan on a text, empty at first."""
        key = " | ".join([plan["calibration"], f"{plan['eps']:g}", f"{plan['margin']:g}", text])
        cell = self._found.setdefault(key, {"text": text, "kl": [], "length": 0})
        cell.update(plan)
        return cell

    def save(self) -> None:
        """Write all."""
        write_bytes(self._file, json.dumps(self._found).encode())

    def rows(self) -> list[dict[str, Any]]:
        """A row for each cell: mean and interval instead of sequences, and bytes beside those of margin `BASE`."""
        stored = {(c["calibration"], c["eps"]): c["stored_bytes"] for c in self._found.values() if c["margin"] == BASE}
        rows = []
        for cell in filter(lambda cell: cell["kl"], self._found.values()):
            kl = np.array(cell["kl"])
            row = {name: value for name, value in cell.items() if name not in ("kl", "length")}
            rows.append(row | {
                "measured": float(kl.mean()), "ci95": bootstrap_interval(kl), "tokens": len(kl) * cell["length"],
                "measured_over_eps": float(kl.mean()) / cell["eps"],
                "measured_over_predicted": float(kl.mean()) / cell["predicted"],
                "more_bytes": cell["stored_bytes"] / stored[cell["calibration"], cell["eps"]] - 1,
            })  # fmt: skip
        return rows


def judge(
    subject: Subject,
    copied: Subject,
    found: Measurement,
    config: QuantizeConfig,
    samples: Samples,
    texts: dict[str, Reference],
    calibration: str,
    cells: Cells,
    stages: Stages,
) -> None:
    """Solve for one tolerance and margin, and compare on what no earlier run has compared."""
    plan = solve_for(config, found)
    about = {
        "calibration": calibration, "eps": config.eps, "margin": config.margin, "predicted": plan.kl_predicted,
        "stored_bytes": plan.stored_bytes, "bits": plan.bits_per_weight,
    }  # fmt: skip
    if not texts:
        cells.of(about, NAMED[0])  # the bytes alone
    missing = {name: text for name, text in texts.items() if len(cells.of(about, name)["kl"]) < len(text.samples)}
    if not missing:
        return
    with copied.segmented.weights.hold(copied.model.parameters()), torch.no_grad():
        round_to_plan(copied, plan, samples, config.rounding, Stages(quiet=True))
        for name, text in missing.items():
            cell = cells.of(about, name)
            cell["length"] = text.samples.length
            with stages.stage(f"{calibration}, {config.eps:g}, {config.margin:g}, {name}"):
                for each in distances(subject, copied, text, len(cell["kl"])):
                    cell["kl"].append(each)
            cells.save()


def distances(subject: Subject, copied: Subject, text: Reference, done: int) -> Iterator[float]:
    """Mean distortion of each sequence, from the one of this number on."""
    for rows, hidden in zip(text.samples.batches(), text.hidden, strict=True):
        if rows.stop <= done:
            continue
        batch = text.samples[rows]
        with subject.segmented.judging():
            expected, got = subject.segmented.suffix(hidden, batch), copied.segmented.output(batch)
        means = subject.distortion.between(expected, got, batch).mean(1).tolist()
        yield from means[max(0, done - rows.start) :]


@torch.no_grad()
def referenced(subject: Subject, samples: Samples) -> Reference:
    """What the original makes of a text."""
    states = HiddenStates(subject.segmented, samples)
    with subject.segmented.judging():
        for segment in subject.segmented.segments[:-1]:
            states.through(segment)
    return Reference(samples, [states.state(number) for number in range(len(samples.batches()))])


def windows(subject: Subject, file: str, length: int) -> Samples:
    """At most `MOST` tokens of a text, in an order of which every beginning, of whole batches, is spread over it."""
    found = read_text(
        subject.tokenizer, file, sequences=MOST // length, length=length, split="held-out", model=subject.model, least=1
    )
    return found[torch.tensor(spread(len(found)))]


def named_parts(
    config: QuantizeConfig, subject: Subject, samples: Samples, count: int, stages: Stages
) -> Iterator[Reference]:
    """Both parts of the text that `natprec quantize` would name, but for the model's own."""
    judging = held_out(config, subject, stages, pieces_of(samples))
    for number in range(len(NAMED)):
        (text,) = (each for each in judging.part(number) if isinstance(each, GivenText))
        yield referenced(subject, text.windows[: max(count, fitting(config.length))])


def measured(config: QuantizeConfig, subject: Subject, samples: Samples, file: Path, stages: Stages) -> Measurement:
    """The measurement, made now or found."""
    if not file.is_file():
        parts = calibration_parts(config, subject)
        measure(subject, samples, config, parts=parts, stages=stages).save(file)
    return Measurement.load(file)


def label(calibration: str) -> str:
    """What a calibration text is called."""
    return ORDINARY if calibration == "none" else Path(calibration).stem


if __name__ == "__main__":
    main()
