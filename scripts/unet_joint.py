"""The joint prediction on a diffusion UNet, whose errors point the same way: that of adaptive-terrain-diffusion.

    pip download adaptive-terrain-diffusion==0.4.2 --no-deps && unzip adaptive_terrain_diffusion-*.whl
    python scripts/unet_joint.py terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx

Needs `onnx` and `onnxruntime`. D is the mean squared error of the terrain, of one step from noise at sigma 80. Four
plans, rounded to nearest, one grid per output channel: two that are solved, and 4 and 6 bits throughout.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from natprec.config import QuantizeConfig
from natprec.evaluation.verification import compare
from natprec.formats import CHANNEL, integer
from natprec.inspection.landscape.onnx_module import OnnxModule
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.module import subject_of_module
from natprec.pipeline.joint import PlanLook, with_joint
from natprec.pipeline.rounded import round_to_plan
from natprec.solver import Plan
from natprec.solver.site_costs import kl_of
from natprec.tasks import Samples
from natprec.utils.progress import Stages

SIGMA = 80.0


def samples_of(count: int, first: int) -> Samples:
    """Noise, with difficulties from 0 to 1."""
    draw = np.random.default_rng(first)
    return Samples.of(
        {
            "noisy": torch.from_numpy(draw.standard_normal((count, 1, 128, 128), dtype=np.float32) * np.float32(SIGMA)),
            "sigma": torch.full((count,), SIGMA),
            "difficulty": torch.from_numpy(draw.integers(0, 100, count).astype(np.float32) / 99),
        }
    )


def difference(path: Path, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    """The largest absolute difference between a module's output and that of onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    expected: np.ndarray = session.run(None, {name: each.numpy() for name, each in inputs.items()})[0]
    with torch.no_grad():
        return float((module(**inputs) - torch.from_numpy(expected)).abs().max())


def uniform(measurement: Measurement, plan: Plan, bits: int) -> Plan:
    """The same plan with one width throughout."""
    fmt = integer(bits, CHANNEL, symmetric=False)
    costs = {name: float(kl_of(measurement.curves[name], [fmt], "rtn")[0]) for name in plan.sites}
    sites = {name: replace(choice, format=fmt, kl=costs[name]) for name, choice in plan.sites.items()}
    total = sum(choice.kl for choice in sites.values())
    shapes = [measurement.curves[name].site.shape for name in plan.sites]
    bits = 8 * sum(fmt.stored_bytes(*shape) for shape in shapes) / sum(rows * columns for rows, columns in shapes)
    return replace(
        plan, sites=sites, kl_sum=total, kl_predicted=total, kl_predicted_ci95=(total, total), bits_per_weight=bits
    )


def main() -> None:
    """Measure once; predict, round and judge four plans."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("onnx", type=Path)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--held-out", type=int, default=12)
    parser.add_argument("--eps", type=float, nargs="*", default=[3e-4, 3e-3])
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 6])
    parser.add_argument("--measurement", type=Path, help="use this file, or keep the measurement here")
    options = parser.parse_args()
    module = OnnxModule(options.onnx)
    off = difference(options.onnx, module, dict(samples_of(2, 5).tensors))
    print(f"largest difference to onnxruntime: {off:.2g}", flush=True)
    stages, samples, held_out = Stages(), samples_of(options.samples, 1), samples_of(options.held_out, 2)
    subject = subject_of_module(module, samples, name="terrain UNet")
    config = QuantizeConfig("", engine="natprec", rounding="rtn", group_size=CHANNEL, margin=0.0)
    start = time.perf_counter()
    if options.measurement and options.measurement.exists():
        measurement = Measurement.load(options.measurement)
    else:
        measurement = measure(subject, samples, config, stages=stages)
        if options.measurement:
            measurement.save(options.measurement)
    print(f"{len(subject.sites)} sites, {sum(site.elements for site in subject.sites)} weights, "
          f"{time.perf_counter() - start:.0f} s to measure")  # fmt: skip
    output, texts = subject.segmented.output, {"calibration": samples, "held_out": held_out}
    with torch.no_grad():
        expected = {name: [output(batch) for batch in each.split()] for name, each in texts.items()}
    print(f"{'plan':>10} {'bits':>6} {'sum':>9} {'joint':>9} {'95 %':>20} {'predicted':>9} {'calibr.':>9}", end="")
    print(f" {'/pred.':>6} {'held-out':>9} {'/sum':>6} {'/predicted':>10} {'look s':>6}")
    first = measurement.solve(eps=1e-3, margin=0.0)
    for asked in [*options.eps, *options.bits]:
        solved = isinstance(asked, float)
        plan = measurement.solve(eps=asked, margin=0.0) if solved else uniform(measurement, first, asked)
        before, start = plan.kl_sum, time.perf_counter()
        if solved:
            asking = replace(config, eps=asked)
            plan, joint = with_joint(asking, subject, measurement, plan, samples, stages)
            assert joint is not None
        else:
            look = PlanLook(subject, measurement, samples, stages)
            joint = look.completed(plan, look.points(plan))
            plan = joint.shown(plan)
        seconds = time.perf_counter() - start
        found = {}
        with subject.segmented.weights.hold(module.parameters()):
            round_to_plan(subject, plan, None, "rtn", Stages(quiet=True))
            for name, each in texts.items():
                reference = iter(expected[name])
                cost = compare(lambda _, it=reference: next(it), output, each, distortion=subject.distortion)
                found[name] = cost.summary()["kl_mean"]
        low, high = joint.joint_ci95
        row = {
            "plan": asked, "bits": plan.bits_per_weight, "first_sum": before, "kl_sum": plan.kl_sum,
            "kl_predicted": plan.kl_predicted, "joint": joint.kl_joint, "joint_ci95": (low, high),
            "alignment": joint.alignment, "link": joint.link, "first_measured": joint.measured.mean(),
            "first_halved": joint.halved.mean(), **found, "seconds": seconds,
        }  # fmt: skip
        print(
            f"{asked:10g} {plan.bits_per_weight:6.3f} {plan.kl_sum:9.3g} {joint.kl_joint:9.3g} {low:10.3g}{high:10.3g} "
            f"{plan.kl_predicted:9.3g} {found['calibration']:9.3g} {found['calibration'] / plan.kl_predicted:6.2f} "
            f"{found['held_out']:9.3g} {found['held_out'] / plan.kl_sum:6.2f} "
            f"{found['held_out'] / plan.kl_predicted:10.2f} {seconds:6.1f}",
            flush=True,
        )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
