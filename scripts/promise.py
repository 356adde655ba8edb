"""The promise: predicted and measured joint KL, or embedding distance, over a range of tolerances.

    python scripts/promise.py --data valid.txt --eval-data test.raw.txt
    python scripts/promise.py --data valid.txt --eval-data test.raw.txt --gpu sm90 --activations auto --eps 0.1 0.03

With --gpu, all that vLLM's code runs on that GPU is a candidate: floating-point formats, zero points, packed embedding
and head. Prints, for each eps: predicted / eps, measured / predicted, and whether measured <= eps, with
round-to-nearest and with GPTQ. The quantized models stay in memory; no correction is made.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

import torch

from natprec.config import QuantizeConfig
from natprec.evaluation.verification import compare
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import calibration_parts, calibration_samples, held_out_samples
from natprec.rounding.flows import flows_rounded
from natprec.utils.progress import Stages


def main() -> None:
    """Measure once, then solve, round and judge for each tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--eval-data")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--gpu", help="plan what vLLM's code runs on it, seen to load or not")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--measurement", type=Path, help="use this file instead of measuring")
    parser.add_argument("--roundings", default="rtn,gptq")
    parser.add_argument("--activations", default="16", help="bits of the inputs of Linears, or auto")
    parser.add_argument("--kv", default="16", help="bits of keys and values")
    parser.add_argument("--margin", type=float, default=0.05, help="part of eps that plans hold back")
    parser.add_argument("--save", type=Path, help="keep the measurement here")
    parser.add_argument("--eps", type=float, nargs="+", default=[0.3, 0.1, 0.03, 0.01])
    options = parser.parse_args()
    stages = Stages()
    request = QuantizeConfig(
        options.model,
        eps=1.0,
        data=options.data,
        eval_data=options.eval_data,
        engine=options.engine,
        tokens=options.tokens,
        eval_tokens=options.eval_tokens,
        length=options.sequence_length,
        gpu=options.gpu,
        untested=options.gpu is not None,
        sites="weights" if options.activations == options.kv == "16" else "all",
    )
    subject = open_subject(request, stages)
    samples = calibration_samples(request, subject, stages)
    held_out = held_out_samples(request, subject, stages)
    if options.measurement:
        measurement = Measurement.load(options.measurement)
    else:
        measurement = measure(subject, samples, request, parts=calibration_parts(request, subject), stages=stages)
        if options.save:
            measurement.save(options.save)
    with torch.no_grad():
        expected = [subject.segmented.output(batch) for batch in held_out.split()]
    print(
        f"{'rounding':8} {'eps':>6} {'bits':>6} {'predicted/eps':>14} {'measured':>9} {'measured/predicted':>19} held"
    )
    results = []
    for rounding in options.roundings.split(","):
        for eps in options.eps:
            plan = measurement.solve(
                eps=eps, engine=options.engine, rounding=rounding, activations=options.activations, kv=options.kv,
                margin=options.margin,
            )  # fmt: skip
            reference, subject = iter(expected), subject.with_head(plan.untied)
            with subject.segmented.weights.hold(subject.model.parameters()):
                round_to_plan(subject, plan, samples, rounding, Stages(quiet=True))
                with flows_rounded(subject.model, subject.activations, plan):
                    summary = compare(
                        lambda _, it=reference: next(it),
                        subject.segmented.output,
                        held_out,
                        distortion=subject.distortion,
                    ).summary()
            row = {
                "rounding": rounding,
                "eps": eps,
                "bits_per_weight": plan.bits_per_weight,
                "weights": Counter(choice.format.name for choice in plan.sites.values() if choice.format),
                "inputs": Counter(choice.format.name for choice in plan.inputs.values() if choice.format),
                "stored_bytes": plan.stored_bytes,
                "untied": plan.untied,
                "predicted_over_eps": plan.kl_predicted / eps,
                "measured": summary["kl_mean"],
                "ci95": summary["kl_ci95"],
                "measured_over_predicted": summary["kl_mean"] / plan.kl_predicted,
                "held": summary["kl_mean"] <= eps,
            }
            results.append(row)
            print(
                f"{rounding:8} {eps:6.3g} {plan.bits_per_weight:6.3f} {row['predicted_over_eps']:14.3f} "
                f"{row['measured']:9.5f} {row['measured_over_predicted']:19.3f} {row['held']}",
                flush=True,
            )
    print(json.dumps(results))


if __name__ == "__main__":
    main()
