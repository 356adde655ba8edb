"""The joint prediction of a plan beside the sum over sites, and what the rounded model really costs.

    python scripts/joint.py --data valid.txt --eval-data test.raw.txt --eps 0.03 0.3 1.0 --bits 3.0

For each rounding and target: solves, looks at the plan, solves once more where that is due, rounds in memory, and
measures on held-out text, without any correction. `--no-joint` prints the same of the plans of the sum.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from natprec.config import QuantizeConfig
from natprec.evaluation.verification import compare
from natprec.measurement import Measurement
from natprec.pipeline.joint import with_joint
from natprec.pipeline.request import open_subject, solve_for
from natprec.pipeline.resume import run_measurement
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import calibration_samples, held_out_samples
from natprec.rounding.flows import flows_rounded
from natprec.utils.progress import Stages


def main() -> None:
    """Measure once, then plan, round and judge for each target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--margin", type=float, default=0.05, help="part of eps that plans hold back")
    parser.add_argument("--measurement", type=Path, help="use this file, or keep the measurement here")
    parser.add_argument("--roundings", default="rtn,gptq")
    parser.add_argument("--eps", type=float, nargs="*", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--bits", type=float, nargs="*", default=[3.0])
    parser.add_argument("--no-joint", action="store_true")
    options = parser.parse_args()
    stages = Stages()
    config = QuantizeConfig(
        options.model, eps=1.0, data=options.data, eval_data=options.eval_data, engine=options.engine,
        tokens=options.tokens, eval_tokens=options.eval_tokens, length=options.sequence_length, margin=options.margin,
        joint=not options.no_joint,
    )  # fmt: skip
    subject = open_subject(config, stages)
    samples, held_out = calibration_samples(config, subject, stages), held_out_samples(config, subject, stages)
    if options.measurement and options.measurement.exists():
        measurement = Measurement.load(options.measurement)
    else:
        state = (options.measurement or Path("joint")).with_suffix(".partial")
        measurement = run_measurement(config, subject, samples, state, False, stages)
        state.unlink(missing_ok=True)
        if options.measurement:
            measurement.save(options.measurement)
    with torch.no_grad():
        expected = [subject.segmented.output(batch) for batch in held_out.split()]
    head = f"{'rounding':8} {'target':>8} {'bits':>6} {'first sum':>9} {'joint':>8} {'95 %':>17} {'calibr.':>8}"
    print(f"{head} {'sum':>8} {'predicted':>9} {'measured':>8} {'/sum':>6} {'/predicted':>10} {'look s':>6}")
    for rounding in options.roundings.split(","):
        targets = [{"eps": eps, "bits": None} for eps in options.eps]
        targets += [{"eps": None, "bits": bits} for bits in options.bits]
        for target in targets:
            asked = replace(config, rounding=rounding, **target)
            first, start = solve_for(asked, measurement), time.perf_counter()
            plan, joint = with_joint(asked, subject, measurement, first, samples, Stages(quiet=True))
            seconds = time.perf_counter() - start
            reference = iter(expected)
            with subject.segmented.weights.hold(subject.model.parameters()):
                round_to_plan(subject, plan, samples, rounding, Stages(quiet=True))
                with flows_rounded(subject.model, subject.activations if plan.inputs or plan.cache else [], plan):
                    found = compare(
                        lambda _, it=reference: next(it),
                        subject.segmented.output,
                        held_out,
                        distortion=subject.distortion,
                    ).summary()
            low, high = joint.joint_ci95 if joint else (0.0, 0.0)
            row = {
                "rounding": rounding, **target, "bits_per_weight": plan.bits_per_weight, "first_sum": first.kl_sum,
                "joint": joint.kl_joint if joint else None, "joint_ci95": (low, high),
                "alignment": joint.alignment if joint else None, "link": joint.link if joint else None,
                "sums": joint.sums.mean() if joint else None,
                "measured_calibration": joint.measured.mean() if joint else None,
                "halved_calibration": joint.halved.mean() if joint else None,
                "kl_sum": plan.kl_sum, "kl_predicted": plan.kl_predicted, "measured": found["kl_mean"],
                "ci95": found["kl_ci95"], "seconds": seconds,
            }  # fmt: skip
            name = f"{target['eps']:g} eps" if target["eps"] else f"{target['bits']:g} bit"
            print(
                f"{rounding:8} {name:>8} {plan.bits_per_weight:6.3f} {first.kl_sum:9.5f} "
                f"{row['joint'] or 0:8.5f} {low:8.5f} {high:8.5f} {row['measured_calibration'] or 0:8.5f} "
                f"{plan.kl_sum:8.5f} {plan.kl_predicted:9.5f} {row['measured']:8.5f} "
                f"{row['measured'] / plan.kl_sum:6.3f} {row['measured'] / plan.kl_predicted:10.3f} {seconds:6.1f}",
                flush=True,
            )
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
