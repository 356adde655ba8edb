"""The sweep's cost: its time over one plain forward and backward of the same tokens, in one run.

    python scripts/sweep_cost.py --data valid.txt

The plain pass runs before and after the sweeps, with gradients of all weights; peak memory is each
part's highest resident set above the loaded model's. Where the CPU multiplies bfloat16, sweeps of weights do so: each
is compared with a plain pass in its own arithmetic. `--arithmetic float32` times all in that.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.nn import functional

from natprec.config import QuantizeConfig
from natprec.formats import engine_profile
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.activation_sites import activation_formats
from natprec.pipeline.request import open_subject
from natprec.pipeline.samples import calibration_samples
from natprec.tasks import CAUSAL, Samples
from natprec.utils.progress import Stages


def plain(subject: Subject, samples: Samples) -> dict[str, float]:
    """Seconds of one forward and backward per batch, in each arithmetic that a sweep uses."""
    kinds = {"float32": contextlib.nullcontext}
    if subject.segmented.products != torch.float32:
        kinds["bfloat16"] = subject.segmented.gathering
    return {name: one_pass(subject.model, samples, context) for name, context in kinds.items()}


def one_pass(model: Any, samples: Samples, context: Callable[[], Any]) -> float:
    """Seconds; the way forward stands in `context`."""
    model.requires_grad_(True)
    start = time.perf_counter()
    for batch in samples.split():
        with context():
            logits = CAUSAL.forward(model, batch).logits.float()
        functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.ids[:, 1:].flatten(), reduction="sum").backward()
        model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return time.perf_counter() - start


def main() -> None:
    """Time plain, sweep, plain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--sweeps", default="rtn,gptq,all", help="of weights for either rounding; all: rtn, all sites")
    parser.add_argument("--arithmetic", default="auto", help="auto, float32 or bfloat16")
    options = parser.parse_args()
    request = QuantizeConfig(
        options.model, eps=1.0, data=options.data, tokens=options.tokens, arithmetic=options.arithmetic
    )
    subject = open_subject(request, Stages())
    samples = calibration_samples(request, subject, Stages())
    formats = subject.candidates(engine_profile("vllm"), options.group_size)
    loaded = psutil.Process().memory_info().rss
    peak = [loaded]

    def advance(_: str) -> None:
        peak.append(psutil.Process().memory_info().rss)

    before = plain(subject, samples)
    seconds = {}
    flows = {site: activation_formats(site, options.group_size) for site in subject.activations}
    for kind in options.sweeps.split(","):
        start = time.perf_counter()
        sweep(
            subject.segmented, subject.sites, formats, samples,
            scale_dtype=subject.storage_dtype, seed=0, rounding="gptq" if kind == "gptq" else "rtn",
            activations=flows if kind == "all" else None, advance=advance,
        )  # fmt: skip
        seconds[kind] = time.perf_counter() - start
    after = plain(subject, samples)
    own = {kind: "float32" if kind == "all" else list(before)[-1] for kind in seconds}
    result = {
        "sites": len(subject.sites),
        "activations": len(flows),
        "widths": len(next(iter(formats.values()))),
        "tokens": samples.tokens,
        "plain_seconds": [before, after],
        "sweep_seconds": seconds,
        "arithmetic": own,
        "ratio": {kind: 2 * took / (before[own[kind]] + after[own[kind]]) for kind, took in seconds.items()},
        "model_bytes": sum(p.numel() * p.element_size() for p in subject.model.parameters()),
        "resident_loaded_bytes": loaded,
        "resident_peak_sweep_bytes": max(peak),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
