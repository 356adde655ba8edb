"""Speed and agreement of natprec on several processes against one process with as many threads.

    python scripts/processes.py --data valid.txt --processes 2 --pairs 3                       # natprec measure
    python scripts/processes.py --data valid.txt --eval-data test.raw.txt --quantize           # the whole flow
    python scripts/processes.py --project                 # 8 GPUs: computed from shapes, nothing is run

The two run in pairs, one after the other and in turns, so that a machine that gets slower hurts both. Printed per pair:
the ratio of their times (1: as fast; of the stage `measure`, and of the whole command), how far the two measurements
are apart, and the bytes that all processes together sent per block. Of `--quantize` also the share of equal codes, the
bytes that rounding sent beside those of the formula in docs/large-models.md, and peak memory beside the forecast. With
another number of threads products are rounded
otherwise; with `--same-threads` the one process has one thread too, which compares the numbers alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from natprec.evaluation.verify import MEASUREMENT
from natprec.formats import engine_profile
from natprec.measurement import Measurement
from natprec.measurement.gptq_ratio import JUDGING
from natprec.measurement.measure import goes_back
from natprec.measurement.sharding import Sharding
from natprec.measurement.weight_observer import WeightObserver
from natprec.models.layers import known_layer
from natprec.models.weight_sites import Site
from natprec.pipeline.shared_estimate import summed_bytes
from natprec.quantizers.gptq import SHARE_ROWS
from natprec.rounding.learned import STEPS
from natprec.rounding.pilot import WAYS, pilot_blocks
from natprec.tasks import Samples
from natprec.utils.workers import Workers

LLAMA_8B = {
    "q_proj": (4096, 4096, "attention"),
    "k_proj": (1024, 4096, "attention"),
    "v_proj": (1024, 4096, "attention"),
    "o_proj": (4096, 4096, "o_proj"),
    "gate_proj": (14336, 4096, "mlp"),
    "up_proj": (14336, 4096, "mlp"),
    "down_proj": (4096, 14336, "down_proj"),
}
"""A block's weights: rows, columns, and what shares its inputs."""

FORWARD, BACK = 2, 2
"""Passes of a block: forward twice; of what goes back, for inputs and for weights."""

FLOPS = 50e12
"""Supposed of a GPU, float32, per second."""

LINKS = {"450 GB/s (NVLink)": 450e9, "50 GB/s": 50e9, "3 GB/s (25 Gb/s Ethernet)": 3e9}
"""Supposed of the network: what each process can send per second."""


def natprec_command(options: argparse.Namespace) -> list[str]:
    """What all runs ask for."""
    command = ["-m", "natprec", "quantize" if options.quantize else "measure"]
    command += ["--model", options.model, "--data", options.data]
    if options.quantize:
        command += ["--eval-data", options.eval_data, "--eps", "0.05", "--eval-tokens", "4096"]
        command += ["--arithmetic", options.arithmetic]
    command += ["--rounding", options.rounding, "--tokens", str(options.tokens)]
    return [*command, "--sequence-length", str(options.sequence_length), "--json"]


def forecast(options: argparse.Namespace) -> dict[int, dict[str, int]]:
    """Memory and bytes sent of each process by number of processes, as `--dry-run` says it."""
    command = [sys.executable, *natprec_command(options), "--out", "forecast", "--dry-run"]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {row["processes"]: row for row in said["shared"]}


def run(
    options: argparse.Namespace, processes: int, threads: int, out: Path, extra: Sequence[str] = ()
) -> dict[str, Any]:
    """The report of one run, and the seconds of the whole command; `extra` options go to natprec."""
    command = [*natprec_command(options), "--out", str(out), *extra]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *command]
    begun = time.perf_counter()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run([sys.executable, *command], check=False, stdout=subprocess.PIPE, env=environment)
    assert done.returncode in (0, 3), done
    return json.loads(done.stdout) | {"wall": time.perf_counter() - begun}


def codes_alike(one: Path, other: Path) -> float:
    """The share of stored values of weights that are equal, of two checkpoints."""
    equal = total = 0
    for file in sorted(one.glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other / file.name)
        for name, value in ours.items():
            if value.dtype == torch.int32 and value.dim() == 2:  # eight codes or so in each: compare them by bytes
                value, theirs[name] = value.view(torch.uint8), theirs[name].view(torch.uint8)
            if value.shape == theirs[name].shape:
                equal += int((value == theirs[name]).sum())
            total += value.numel()
    return equal / total


def rounding_formula(
    measurement: Measurement, folder: Path, processes: int, learned: bool, report: dict[str, Any]
) -> dict[str, Any]:
    """What was sent while rounding beside docs/large-models.md, segment by segment.

    How often a block of learned rounding took its steps, once or twice per rounding, no forecast knows: here it is the
    whole number that explains best what the block sent, and the largest difference says how well it does.
    """
    chosen = json.loads((folder / "plan.json").read_text())["sites"]
    sites = [
        curve.site for curve in measurement.weights.values() if curve.site.gptq and chosen[curve.site.name]["format"]
    ]
    others, width = processes - 1, 2 if measurement.header.products == "bfloat16" else 4
    roundings = 1 + report["corrections"]

    def of_one(members: list[Site]) -> tuple[float, float]:
        """Of one rounding, and of the steps that learning takes once."""
        moments = 8 * sum({site.fused_group: site.shape[1] ** 2 for site in members}.values())
        codes = sum(site.elements * (1 + 4 / (chosen[site.name]["group_size"] or site.shape[1])) for site in members)
        steps = sum(site.elements for site in members if in_block(site)) if learned else 0
        return others * (moments + codes), others * 2 * width * STEPS * steps

    sent, expected, differences, again = 0.0, 0.0, [0.0], 0
    tried = pilot_blocks(1 + max(curve.site.segment for curve in measurement.weights.values() if in_block(curve.site)))
    of_segment: dict[str, list[Site]] = {}
    for site in sites:
        of_segment.setdefault(block_of(site) if in_block(site) else "head", []).append(site)
    for stage, count in report["sent_bytes"].items():
        part, _, segment = stage.partition(" ")
        if part not in ("round", "pilot") or segment not in of_segment:
            continue
        if part == "pilot" and of_segment[segment][0].segment not in tried:
            continue  # the text passes, and nothing is rounded
        once, steps = of_one(of_segment[segment])
        ways, least = (roundings, roundings) if part == "round" else (len(WAYS), 1)  # one of the pilot's ways learns
        taken = min(2 * least, max(least, round((count - ways * once) / steps))) if steps else 0
        told = ways * once + taken * steps
        sent, expected, again = sent + count, expected + told, again + max(0, taken - least)
        differences.append(abs(count / told - 1))
    return {
        "roundings": roundings,
        "sent_rounding": round(sent),
        "sent_over_formula": round(sent / expected, 4),
        "largest_difference_of_a_segment": round(max(differences), 4),
        "blocks_that_took_their_steps_again": again,
        "sent_beside_segments": sum(
            count for stage, count in report["sent_bytes"].items() if stage in ("round", "pilot")
        ),
    }


def in_block(site: Site) -> bool:
    """Whether a site is in one of the decoder's blocks."""
    return "layers." in site.name


def block_of(site: Site) -> str:
    """The name of a site's block.

    >>> block_of(Site("model.layers.3.mlp.up_proj", "weight", "linear", (4, 4), ("up",), "mlp", 3))
    'model.layers.3'
    """
    parts = site.name.split(".")
    return ".".join(parts[: parts.index("layers") + 2])


def apart(one: Measurement, other: Measurement) -> dict[str, Any]:
    """Relative differences over all sites and formats, and whether plans are the same."""
    found = {}
    for kind in ("forward", "backward", "energy", "shares"):
        pairs = [(getattr(one.curves[name], kind), getattr(other.curves[name], kind)) for name in one.curves]
        ratios = np.concatenate([(np.abs(a - b) / np.maximum(np.abs(a), 1e-300)).ravel() for a, b in pairs])
        found[kind] = {"median": float(np.median(ratios)), "largest": float(ratios.max())}
    plans = [each.solve(eps=eps, margin=0.05) for each in (one, other) for eps in (0.05, 0.01)]
    return {"relative_difference": found, "same_plans": plans[:2] == plans[2:]}


def projected(processes: int, tokens: int, length: int) -> dict[str, Any]:
    """Bytes and seconds per block of the shape `LLAMA_8B`, by arithmetic; GPTQ's fits are not in it."""
    sequences = tokens // length
    back = int(goes_back(sequences, 1, False, "gptq").sum())
    sharding = Sharding.of(Samples.text(torch.empty(back, length)).batches(), Workers(0, processes))
    formats = engine_profile("vllm").measured((64,))
    gathered = work = 0.0
    for name, (rows, columns, fused_group) in LLAMA_8B.items():
        site = Site(name, "weight", "linear", (rows, columns), (name,), fused_group, 0)
        layer = known_layer(nn.Linear(columns, rows, device="meta"))
        observer = WeightObserver(site, layer, formats, sharding, 1, torch.bfloat16, 0, {})
        pool_count = sum(len(sharding.pool(observer.pool_count, rank)) for rank in range(processes))
        gathered += 4 * pool_count * site.elements
        passes = FORWARD * tokens + BACK * back * length
        work += 2 * passes * site.elements + 4 * (len(formats) + 1) * observer.pool_count * site.elements
    moments = sum({fused_group: columns**2 for _, columns, fused_group in LLAMA_8B.values()}.values())
    judged = sum(min(rows, SHARE_ROWS) * columns for rows, columns, _ in LLAMA_8B.values()) * sequences // JUDGING
    work += tokens * moments
    others = (processes - 1) / processes
    summed = summed_bytes(moments, processes)
    sent = others * (gathered / processes + summed + 4 * judged / processes + 4 * back * length * 4096 / processes)
    seconds = work / processes / FLOPS
    return {
        "projection": "computed, not measured; without GPTQ's rounding of columns, which one process does",
        "processes": processes,
        "tokens": tokens,
        "sent_bytes_per_process_and_block": round(sent),
        "of_it_gradients": round(others * gathered / processes),
        "of_it_moments": round(others * summed),
        "compute_seconds_per_block": seconds,
        "efficiency": {link: round(seconds / (seconds + sent / rate), 3) for link, rate in LINKS.items()},
    }


def main() -> None:
    """Run the pairs, or project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--same-threads", action="store_true")
    parser.add_argument("--project", action="store_true")
    parser.add_argument("--quantize", action="store_true", help="the whole flow, not only measuring")
    parser.add_argument("--eval-data", help="text to judge on")
    parser.add_argument("--arithmetic", default="auto")
    options = parser.parse_args()
    if options.project:
        for tokens in (16384, 65536):
            print(json.dumps(projected(8, tokens, 256), indent=2))
        return
    many = options.processes
    threads = 1 if options.same_threads else many
    ratios = []
    told = forecast(options)
    with tempfile.TemporaryDirectory(prefix="natprec-processes-") as scratch:
        for number in range(options.pairs):
            files = {kind: Path(scratch) / f"{kind}-{number}" for kind in ("one", "many")}
            reports: dict[str, Any] = {}
            for kind in ("one", "many") if number % 2 == 0 else ("many", "one"):
                shape = (1, threads) if kind == "one" else (many, 1)
                reports[kind] = run(options, *shape, files[kind])
            one, other = reports["one"], reports["many"]
            ratios.append(one["seconds"]["measure"] / other["seconds"]["measure"])
            row = {
                "pair": number,
                "ratio_measure": round(ratios[-1], 3),
                "ratio_command": round(one["wall"] / other["wall"], 3),
                "seconds_one": one["seconds"],
                "seconds_many": other["seconds"],
                "peak_bytes": [one["peak_bytes"], other["peak_bytes"]],
                "peak_over_forecast": [
                    round(report["peak_bytes"] / told[size]["memory_bytes"], 3)
                    for report, size in ((one, 1), (other, many))
                ],
            }
            if options.quantize:
                found = {kind: Measurement.load(file / MEASUREMENT) for kind, file in files.items()}
                learned = options.rounding == "learned"
                row |= {
                    "codes_alike": codes_alike(files["one"], files["many"]),
                    "kl": [one["kl_mean"], other["kl_mean"]],
                    **rounding_formula(found["one"], files["many"], many, learned, other),
                }
            else:
                found = {kind: Measurement.load(file) for kind, file in files.items()}
                judged = ("spot check", "start")
                whole = sum(bytes_ for stage, bytes_ in other["sent_bytes"].items() if stage not in judged)
                row["sent_over_formula"] = round(whole / (many * told[many]["sent_bytes"]), 4)
                others = ("head", "embedding", *judged)
                sent = [bytes_ for stage, bytes_ in other["sent_bytes"].items() if stage not in others]
                row["sent_bytes_per_block"] = round(statistics.mean(sent))
            print(json.dumps(row | apart(*found.values())), flush=True)
    print(json.dumps({"processes": many, "threads_of_one": threads, "ratio_measure_median": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
