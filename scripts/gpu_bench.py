"""The CUDA kernel on a GPU: is it right, and how long does it take beside others? Prints JSON.

    python -m scripts.gpu_bench > h100.json                      all
    python -m scripts.gpu_bench --models smollm2-135m --bits 4   some; --layers, --tokens, --kernels likewise

The products are those of SmolLM2-135M and Llama 3.1 8B with the epilogues of their layers: nothing after query, key and
value; SiLU and the gated product after gate; the residual after the others. Weights are in groups of 64, symmetric.

First a kernel's result is held against the specification in float64; one that is wrong is not timed. Then it is called
on weights in rotation, with 1 GiB overwritten before each call, so that nothing is left in the L2 cache; times are
medians of CUDA events. `host_us` is what a call takes on the CPU: where it is above `flush_us`, the GPU had to wait for
it. `modelled_us` is not measured: it is the roofline of the published peaks of an H100, or H200.

With --device cpu results are checked and nothing is timed; for the Triton kernel set TRITON_INTERPRET=1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from torch import Tensor

from natprec.runtime.kernels.traffic import H100, H200, Machine, modelled_seconds
from scripts.gpu_cases import SHAPES, Call, Case, NotRun, Operands
from scripts.gpu_kernels import KERNELS, Entry

TOKENS = (1, 16, 64, 512, 1024, 2048)
"""Decode, several texts at once, and prefill."""

COPIES, REPEATS, FLUSH = 4, 50, 1 << 30
"""Weights in rotation; timed calls; bytes overwritten before each."""


def errors(result: Tensor, expected: Tensor) -> dict[str, float]:
    """How far a result is from the specification: norms; of int8 codes also how many differ, and by how much."""
    difference = result.double() - expected.double()
    found = {"relative_error": float(difference.norm() / expected.double().norm())}
    if expected.dtype == torch.int8:
        found["codes_that_differ"] = float((difference != 0).double().mean())
        found["largest_difference"] = float(difference.abs().max())
    return found


def right(found: dict[str, Any], entry: Entry) -> bool:
    """Whether it is near enough; NaN is not.

    A peer rounds its product to 16 bits before the epilogue; its codes may be off by 1, and by the tolerance of the
    largest.
    """
    if "codes_that_differ" not in found:
        return bool(found["relative_error"] <= entry.tolerance)
    if entry.exact:
        return bool(found["codes_that_differ"] <= 1e-4 and found["largest_difference"] <= 1)
    return bool(found["largest_difference"] <= 1 + 128 * entry.tolerance or found["relative_error"] <= entry.tolerance)


def measure(call: Call, repeats: int = REPEATS) -> dict[str, float]:
    """Microseconds of a call: median, and 10th and 90th percentile; the L2 cache is cold each time."""
    flush = torch.empty(FLUSH, dtype=torch.int8, device="cuda")
    for copy in range(COPIES):
        call(copy)
    torch.cuda.synchronize()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(3)] for _ in range(repeats)]
    host = []
    for number, (begin, start, stop) in enumerate(marks):
        begin.record()
        flush.zero_()
        start.record()
        before = time.perf_counter()
        call(number % COPIES)
        host.append(1e6 * (time.perf_counter() - before))
        stop.record()
    torch.cuda.synchronize()
    took = sorted(1e3 * start.elapsed_time(stop) for _, start, stop in marks)
    return {
        "median_us": statistics.median(took),
        "p10_us": took[repeats // 10],
        "p90_us": took[-1 - repeats // 10],
        "host_us": statistics.median(host),
        "flush_us": statistics.median(1e3 * begin.elapsed_time(start) for begin, start, _ in marks),
    }


def roofline() -> Machine:
    """Whose published peaks are modelled with: the GPU's if it is an H200, else an H100's."""
    return H200 if torch.cuda.is_available() and "H200" in torch.cuda.get_device_name() else H100


def row(case: Case, name: str, operands: Operands) -> dict[str, Any]:
    """One kernel on one case: checked, then timed."""
    product = case.product
    entry = KERNELS[name]
    found: dict[str, Any] = {
        "model": case.model, "layer": case.layer, "tokens": case.tokens, "rows": product.rows,
        "columns": product.columns, "bits": case.bits, "activations": "A8" if case.coded else "A16",
        "epilogue": product.epilogue.name, "kernel": name, "bytes_fused": product.bytes_moved(fused=True),
        "bytes_unfused": product.bytes_moved(fused=False),
        "modelled_us": 1e6 * modelled_seconds(product, roofline(), name.startswith("natprec tile")),
    }  # fmt: skip
    try:
        call = entry.prepare(operands)
        found |= errors(call(0), operands.expected)
        if not right(found, entry):
            return found | {"status": "wrong"}
        found |= measure(call) if operands.device != "cpu" else {}
    except ModuleNotFoundError as error:
        return found | {"status": f"not run: {error.name} is not installed"}
    except NotRun as error:
        return found | {"status": f"not run: {error}"}
    except Exception as error:  # others' code
        said = (str(error).splitlines() or [""])[0]
        return found | {"status": f"failed: {type(error).__name__}: {said}"}
    return found | {"status": "right" if operands.device == "cpu" else "timed"}


def machine(device: str) -> dict[str, Any]:
    """The GPU with its clocks and driver, and all versions."""
    packages = ("torch", "triton", "vllm", "humming-kernels", "bitsandbytes")
    found: dict[str, Any] = {"device": device, "python": platform.python_version(), "cuda": torch.version.cuda}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    if device != "cpu":
        fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
        asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
        said = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        found |= dict(zip(fields.split(","), said.strip().split(", "), strict=True))
        found["capability"] = torch.cuda.get_device_capability()
    return found


def main() -> int:
    """Check and time every chosen kernel on every chosen case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--layers", nargs="+", default=["qkv", "o", "gate", "down"])
    parser.add_argument("--bits", nargs="+", type=int, default=list(range(2, 9)))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("device 'cuda': torch finds no GPU here; run this where there is one, or check results with "
              "--device cpu", file=sys.stderr)  # fmt: skip
        return 2
    if options.device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        print("device 'cpu': Triton's interpreter is off; set TRITON_INTERPRET=1", file=sys.stderr)
        return 2
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    before, results = machine(options.device), []
    for model, layer, bits, tokens, coded in itertools.product(
        options.models, options.layers, options.bits, options.tokens, (False, True)
    ):
        case = Case(model, layer, bits, tokens, coded)
        operands = Operands(case, options.device, COPIES if options.device == "cuda" else 1)
        for name in options.kernels:
            results.append(row(case, name, operands))
            print(model, layer, case.product.format.name, tokens, name, results[-1]["status"], file=sys.stderr)
    print(json.dumps({"before": before, "after": machine(options.device), "results": results}, indent=1))
    return int(any(result["status"] == "wrong" for result in results))


if __name__ == "__main__":
    sys.exit(main())
