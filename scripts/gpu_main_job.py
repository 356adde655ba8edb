"""The whole job on a GPU at the sizes that people have: what each stage takes. Prints a table; JSON with --json FILE.

    python -m scripts.gpu_main_job --minutes 9 --json h200.json
    python -m scripts.gpu_main_job --runs llama-3.1-8b:disk:4 --profile     one run of four layers, and where time goes
    python -m scripts.gpu_main_job --device cpu --runs tiny:gpu tiny-experts:disk --tokens 512 --length 64

Models of real shapes with random weights are made here; nothing is downloaded. A run is SHAPE:PLACE[:LAYERS]: weights
on the device (gpu), in the host's memory (host) or on disk. Memory and disk are counted first, and layers cut until the
shape fits. Each stage has a limit; what exceeds it ends the run, whose other stages are then 'not run'. It always ends
within the minutes, with what it has.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from natprec.utils.human import human_bytes
from scripts.gpu_shapes import HOST, PLACES, SHAPES, Shape, describe, fitting, whole
from scripts.gpu_stages import STAGES
from scripts.large_model import write_model

RUNS = ("llama-3.1-8b:gpu", "llama-3.1-8b:disk:4", "llama-3.1-8b:host:4", "qwen3-30b-a3b:disk:2")
"""The 8B first, all of it; then what one layer more costs from elsewhere; the 30B last."""

LIMITS = {
    "make": 90, "open": 60, "plain": 30, "measure": 150, "solve": 20, "round": 150, "write": 60, "load": 60,
    "generate": 60, "bf16": 60, "verify": 90, "learned": 120,
}  # fmt: skip
"""Seconds of each stage, and no more than are left of the whole."""

ENDING = 10.0
"""Seconds that are kept for ending processes and printing."""


class Line(queue.Queue[dict[str, Any] | None]):
    """What a process prints, read by a thread; None at its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        super().__init__()
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                self.put(json.loads(line))
        self.put(None)


def stages_of(command: list[str], end: float) -> list[dict[str, Any]]:
    """Run the stages of one model in a process of their own; the last that it returns may have been stopped."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        lines, now = Line(process), "open"
        try:
            while True:
                left = min(LIMITS[now], end - time.monotonic())
                try:
                    line = lines.get(timeout=max(0.0, left))
                except queue.Empty:
                    found.append({"stage": now, "status": f"stopped after {max(0.0, left):.0f} s"})
                    return found
                if line is None:
                    if process.wait() != 0:
                        said.seek(0)
                        last = (said.read().strip().splitlines() or ["it printed nothing"])[-1]
                        found.append({"stage": now, "status": f"failed: {last}"})
                    return found
                now = line["stage"]
                if line["status"] != "begins":
                    found.append(line)
        finally:
            process.kill()
            process.wait()


def run(name: str, place: str, most: int | None, end: float, options: argparse.Namespace) -> dict[str, Any]:
    """One model in one place."""
    result: dict[str, Any] = {"shape": name, "place": place, "layers_of_shape": whole(name).layers, "stages": []}
    if time.monotonic() >= end:
        return result | {"layers": 0, "why": "no time was left"}
    shape, why = fitting(name, place, options.device, options.scratch, most)
    if shape is None:
        return result | {"layers": 0, "why": why}
    base = HOST if place == "host" else options.scratch
    with (
        tempfile.TemporaryDirectory(prefix="natprec-main-job-", dir=base) as there,
        tempfile.TemporaryDirectory(prefix="natprec-main-job-", dir=options.scratch) as scratch,
    ):
        made = make(shape, Path(there) / "model", options.device)
        command = [sys.executable, "-W", "ignore", "-m", "scripts.gpu_stages", str(Path(there) / "model")]
        command += ["--device", options.device, "--weights", "memory" if place == "gpu" else "disk"]
        command += ["--tokens", str(options.tokens), "--length", str(options.length), "--scratch", scratch]
        command += ["--group-size", str(options.group_size), *(["--profile"] if options.profile else [])]
        command += ["--stages", *options.stages]
        stages = [made, *stages_of(command, end)]
    return result | {"layers": shape.layers, "why": why, "weights": shape.weights, "stages": stages}


def make(shape: Shape, folder: Path, device: str) -> dict[str, Any]:
    """Write the model."""
    start = time.monotonic()
    size = write_model(folder, shape.config, device)
    return {"stage": "make", "status": "done", "seconds": time.monotonic() - start, "stored_bytes": size}


def table(results: list[dict[str, Any]]) -> str:
    """For people."""
    head = "| run | stage | seconds | GPU peak | host peak | over PCIe | more |\n|---|---|---|---|---|---|---|\n"
    rows = []
    for result in results:
        name = f"{result['shape']} {result['place']}, {result['layers']} of {result['layers_of_shape']} layers"
        if result.get("why"):
            name += f" ({result['why']})"
        if not result["stages"]:
            rows.append(f"| {name} | all | not run | | | | |")
        for stage in result["stages"]:
            sizes = [stage.get(key) for key in ("peak_gpu_bytes", "peak_host_bytes", "moved_bytes")]
            shown = ["" if size is None else human_bytes(size) for size in sizes]
            taken = f"{stage['seconds']:.1f}" if stage["status"] == "done" else stage["status"]
            more = ", ".join(
                f"{key.replace('_', ' ')} {value:.1f}"
                for key, value in stage.items()
                if key.endswith("per_second") or key == "pass_seconds"
            )
            rows.append(f"| {name} | {stage['stage']} | {taken} | {' | '.join(shown)} | {more} |")
    return head + "\n".join(rows)


def profiles(results: list[dict[str, Any]]) -> str:
    """The most expensive operations of each stage."""
    return "\n".join(
        f"{result['shape']} {result['place']} {stage['stage']}: {row['seconds']:.3f} s, {row['calls']} × {row['name']}"
        for result in results
        for stage in result["stages"]
        for row in stage.get("top", ())
    )


def parse_run(text: str) -> tuple[str, str, int | None]:
    """SHAPE:PLACE[:LAYERS].

    Raises:
        ArgumentTypeError: it is none.
    """
    name, _, rest = text.partition(":")
    place, _, layers = rest.partition(":")
    if name not in SHAPES or place not in PLACES or not (layers == "" or (layers.isdigit() and int(layers) > 0)):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give SHAPE:PLACE[:LAYERS], a shape of {', '.join(SHAPES)} and a place of {', '.join(PLACES)}"
        )
    return name, place, int(layers) if layers else None


def main() -> int:
    """Run what there is time for."""
    begun = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--runs", nargs="+", type=parse_run, default=[parse_run(each) for each in RUNS])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--profile", action="store_true", help="name the ten most expensive operations of each stage")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    options = parser.parse_args()
    from natprec.errors import InputError
    from natprec.models.devices import usable_device

    try:
        usable_device(options.device)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    end = begun + 60 * options.minutes - ENDING
    results = []
    for name, place, layers in options.runs:
        results.append(run(name, place, layers, end, options))
        if options.json:  # after each run: what there is survives whoever ends this
            content = {"machine": describe(options.device), "minutes": options.minutes, "runs": results}
            options.json.write_text(json.dumps(content, indent=1))
    print(table(results))
    if options.profile:
        print(profiles(results))
    return int(any(stage["status"].startswith("failed") for result in results for stage in result["stages"]))


if __name__ == "__main__":
    sys.exit(main())
