"""Training on a quantized base: its gradients of LoRA adapters against the full-precision base's.

    python scripts/backward.py --data valid.txt --eps 0.1 --eps-bwd 0.0002

Measures once and solves twice, with and without the backward tolerance. Each base gets the same adapters of
rank 8 at every Linear, is trained for some steps, and at each step the gradient of all adapters is compared, as one
vector, with the full-precision base's at the same adapters on the same text. Prints the mean cosine of each plan.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.config import QuantizeConfig
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import Site
from natprec.models.weights import present_values, put_in
from natprec.pipeline.request import open_subject
from natprec.pipeline.rounded import round_to_plan
from natprec.pipeline.samples import calibration_parts, calibration_samples, held_out_samples
from natprec.tasks import Samples
from natprec.utils.hooks import attached
from natprec.utils.progress import Stages

RANK = 8
RATE = 1e-3


@contextlib.contextmanager
def adapted(subject: Subject, pairs: dict[str, tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Within the block each Linear's output has B A x added."""

    def adapter(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            down, up = pairs[name]
            return output + args[0] @ down.T @ up.T

        return hook

    handles = [subject.model.get_submodule(name).register_forward_hook(adapter(name)) for name in pairs]
    with attached(handles):
        yield


def gradient(subject: Subject, pairs: dict[str, tuple[Tensor, Tensor]], samples: Samples) -> Tensor:
    """Of the mean loss on some text with respect to all adapters, as one vector."""
    with adapted(subject, pairs):
        logits = subject.segmented.output(samples)
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), samples.ids[:, 1:].flatten())
        found = torch.autograd.grad(loss, [matrix for pair in pairs.values() for matrix in pair])
    return torch.cat([each.flatten() for each in found])


def adapters(sites: list[Site], seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Both matrices random and small, so that both have a gradient from the first step."""
    draw = torch.Generator().manual_seed(seed)
    return {
        site.name: (
            (torch.randn(RANK, site.shape[1], generator=draw) / site.shape[1] ** 0.5).requires_grad_(),
            (torch.randn(site.shape[0], RANK, generator=draw) * 1e-3).requires_grad_(),
        )
        for site in sites
    }


def main() -> None:
    """Measure, solve twice, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--engine", default="vllm")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--eps-bwd", type=float, nargs="+", default=[0.001])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--measurement", type=Path, help="use this file instead of measuring")
    options = parser.parse_args()
    stages = Stages()
    request = QuantizeConfig(
        options.model, eps=1.0, data=options.data, tokens=options.tokens,
        eval_tokens=options.steps * options.sequence_length, length=options.sequence_length, rounding="rtn",
    )  # fmt: skip
    subject = open_subject(request, stages)
    text = held_out_samples(request, subject, stages)
    if options.measurement:
        measurement = Measurement.load(options.measurement)
    else:
        samples, parts = calibration_samples(request, subject, stages), calibration_parts(request, subject)
        measurement = measure(subject, samples, engine=options.engine, rounding="rtn", parts=parts, stages=stages)
    linears = [site for site in subject.sites if site.role == "linear"]
    rows = []
    for eps_bwd in [None, *options.eps_bwd]:
        plan = measurement.solve(eps=options.eps, margin=0.05, eps_bwd=eps_bwd)
        with subject.segmented.weights.hold(subject.model.parameters()):
            round_to_plan(subject, plan, None, "rtn", Stages(quiet=True))
            rounded = present_values(subject.model)
        pairs, cosines = adapters(linears, 0), []
        for step in range(options.steps):
            sequence = text[step : step + 1]
            wanted = gradient(subject, pairs, sequence)
            with put_in(subject.model, rounded):
                got = gradient(subject, pairs, sequence)
            cosines.append(float(functional.cosine_similarity(wanted, got, dim=0)))
            place = 0
            for matrix in (each for pair in pairs.values() for each in pair):
                own = got[place : place + matrix.numel()].view_as(matrix)
                matrix.data -= RATE * own / own.norm().clamp_min(1e-12) * matrix.norm()
                place += matrix.numel()
        row = {
            "eps_bwd": eps_bwd,
            "bits_per_weight": plan.bits_per_weight,
            "kl_predicted": plan.kl_predicted,
            "cosines": cosines,
            "mean": sum(cosines) / len(cosines),
        }
        rows.append(row)
        print(f"{eps_bwd or '-':>8} {plan.bits_per_weight:6.3f} bits  cosine {row['mean']:.4f}", flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
