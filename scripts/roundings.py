"""Roundings beside each other: one plan of a given size, the same text, the distortion on other text.

    natprec measure --model smollm2-135m --data valid.txt --group-size 64 --out M
    python scripts/roundings.py M --data valid.txt --eval-data test.raw.txt --max-size 117554520

`learned+262144` is learned rounding, and learning against the model's output from so many tokens of the rest of
`--data` and of the model's own text. The quantized models stay in memory; calibration text is that of `--data` alone,
as for the peers of `natprec compare`. `--linear` leaves embedding and head at 16 bits.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

from natprec.comparison.candidates import linears_only
from natprec.config import QuantizeConfig
from natprec.evaluation.verification import compare
from natprec.measurement import Measurement
from natprec.pipeline.learning import learning_asked
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import given_samples, held_out_samples
from natprec.utils.progress import Stages


def main() -> None:
    """Solve once, then round and judge each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", type=Path)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--bits", type=float)
    parser.add_argument("--max-size", type=float, help="bytes of the whole folder")
    parser.add_argument("--roundings", default="gptq,yaqa,learned")
    parser.add_argument("--linear", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stages, noting = Stages(quiet=True), Stages()
    request = QuantizeConfig(
        options.model,
        bits=options.bits,
        max_size=options.max_size,
        data=options.data,
        eval_data=options.eval_data,
        tokens=options.tokens,
        eval_tokens=options.eval_tokens,
        length=options.sequence_length,
        seed=options.seed,
    )
    subject = open_subject(request, stages)
    samples, held_out = given_samples(request, subject, stages), held_out_samples(request, subject, stages)
    measurement = Measurement.load(options.measurement)
    measurement = linears_only(measurement) if options.linear else measurement
    plan = measurement.solve(bits=options.bits, max_size=options.max_size)
    print(f"{plan.bits_per_weight:.3f} bits per weight, {plan.stored_bytes} bytes, predicted {plan.kl_predicted:.4f}")
    with torch.no_grad():
        expected = [subject.segmented.output(batch) for batch in held_out.split()]
    for name in options.roundings.split(","):
        rounding, _, learned = name.partition("+")
        asked = replace(request, learn_tokens=int(learned or 0))
        start, used = time.perf_counter(), time.process_time()
        with subject.segmented.weights.hold(subject.model.parameters()):
            learning = learning_asked(asked, subject, samples, noting)
            round_to_plan(subject, plan, samples, rounding, noting, learning, options.seed)
            seconds, cpu = time.perf_counter() - start, time.process_time() - used
            reference = iter(expected)
            summary = compare(
                lambda _, it=reference: next(it), subject.segmented.output, held_out, distortion=subject.distortion
            ).summary()
        low, high = summary["kl_ci95"]
        print(
            f"{name:12} {summary['kl_mean']:.5f} ({low:.4f} to {high:.4f}) {seconds:.0f} s, {cpu:.0f} s of the CPU",
            flush=True,
        )


if __name__ == "__main__":
    main()
