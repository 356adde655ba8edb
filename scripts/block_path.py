"""What `--weights disk`, one block in memory at a time, costs in time: `natprec measure` so and with all in memory.

    python scripts/block_path.py --data valid.txt --pairs 3

The model is written once as safetensors in bfloat16; the two then measure it in turns, each in a process of its own.
Printed per pair: the ratio of the stage `measure` (disk / memory), and both peaks of memory. Both sweep as many tokens,
but a model in memory writes half of them itself; that they measure the same on the same text is tested
(`tests/models/test_weights.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from processes import run

from natprec.models.loading import load_model


def saved(name: str, folder: Path) -> str:
    """A model as a folder of safetensors."""
    loaded = load_model(name)
    loaded.model.to(torch.bfloat16).save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    ratios = []
    with tempfile.TemporaryDirectory(prefix="natprec-block-path-") as scratch:
        options.model = saved(options.model, Path(scratch) / "model")
        for number in range(options.pairs):
            files = {kind: Path(scratch) / f"{kind}-{number}" for kind in ("memory", "disk")}
            reports: dict[str, Any] = {}
            for kind in files if number % 2 == 0 else reversed(files):
                reports[kind] = run(options, 1, os.cpu_count() or 1, files[kind], ("--weights", kind))
            memory, disk = reports["memory"], reports["disk"]
            ratios.append(disk["seconds"]["measure"] / memory["seconds"]["measure"])
            row = {
                "pair": number,
                "ratio_measure": round(ratios[-1], 3),
                "seconds": {kind: report["seconds"] for kind, report in reports.items()},
                "peak_bytes": {kind: report["peak_bytes"] for kind, report in reports.items()},
            }
            print(json.dumps(row), flush=True)
    print(json.dumps({"ratio_measure_median": statistics.median(ratios)}))


if __name__ == "__main__":
    main()
