"""Runs the recipes and compares each with its [expected], or writes what came of it there.

    python scripts/recipes.py                                   # all that need no text; exit code 1 if one differs
    python scripts/recipes.py recipes/all-minilm-l6-v2.toml --data valid.txt --eval-data test.raw.txt
    python scripts/recipes.py --write                           # [expected], and in [about] hardware, date, duration
    python scripts/recipes.py --write --keep DIR                # the checkpoints too, for scripts/model_cards.py --add

Alone on the machine SmolLM2's take about five minutes each on two cores; `--write` is for a machine that is quiet.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from natprec.pipeline.recipe import FIGURES
from natprec.utils.memory import available_bytes

ROOT = Path(__file__).parents[1]

WRITTEN = {"bits_per_weight": 0.01, "kl_predicted": 0.1, "kl_measured": 0.15, "stored_bytes": 0.01}
"""What is written, with its tolerance: the model's own text, and so a KL, depends on the CPU's arithmetic."""

OF_THE_RUN = ("hardware", "date", "duration_seconds", "versions", "data", "eval_data")
"""Keys of [about] that a run writes."""


def main() -> None:
    """Run each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", type=Path, nargs="*", help="default: all in recipes/")
    parser.add_argument("--data", type=Path, help="text to measure on, for all that are run")
    parser.add_argument("--eval-data", type=Path, help="text to judge on")
    parser.add_argument("--write", action="store_true", help="write [expected] instead of comparing with it")
    parser.add_argument("--keep", type=Path, help="folder for the checkpoints; each has its recipe's name")
    options = parser.parse_args()
    texts = {"data": options.data, "eval_data": options.eval_data}
    texts = {name: file for name, file in texts.items() if file is not None}
    differing = 0
    for file in options.recipes or sorted((ROOT / "recipes").glob("*.toml")):
        with tempfile.TemporaryDirectory(prefix="natprec-recipe-") as folder:
            out, start = (options.keep or Path(folder)) / file.stem, time.perf_counter()
            flags = [part for name, text in texts.items() for part in (f"--{name.replace('_', '-')}", str(text))]
            command = [sys.executable, "-m", "natprec", "quantize", "--recipe", str(file), "--out", str(out), "--json"]
            done = subprocess.run([*command, *flags], stdout=subprocess.PIPE, text=True, check=False)
            seconds = time.perf_counter() - start
            if done.returncode not in (0, 3):
                print(f"{file.stem}: exit code {done.returncode}")
                differing += 1
                continue
            printed = json.loads(done.stdout)
            if options.write:
                found = {name: printed[FIGURES[name]] for name in WRITTEN}
                write(file, found, {**about(seconds), **{name: text.name for name, text in texts.items()}})
        rows = printed.get("expected", {})
        off = [
            f"{name} {row['found']:.6g} for {row['expected']:.6g}" for name, row in rows.items() if not row["agrees"]
        ]
        differing += bool(off) and not options.write
        result = "written" if options.write else "; ".join(off) or ("as expected" if rows else "expects nothing yet")
        print(f"{file.stem}: {result}, {seconds:.0f} s")
    sys.exit(1 if differing else 0)


def about(seconds: float) -> dict[str, Any]:
    """What a run was made on."""
    return {
        "hardware": f"{len(os.sched_getaffinity(0))} CPU cores, {available_bytes() / 1e9:.0f} GB free, no GPU used; "
        f"load {os.getloadavg()[0]:.0f} at the end",
        "date": datetime.date.today().isoformat(),
        "duration_seconds": round(seconds),
        "versions": ", ".join(f"{name} {version(name)}" for name in ("natprec", "torch", "transformers")),
    }


def write(file: Path, found: dict[str, Any], told: dict[str, Any]) -> None:
    """Replace what an earlier run has written into a recipe; the rest stays as it is, comments too."""
    kept, table = [], ""
    for line in file.read_text(encoding="utf-8").rstrip().splitlines():
        table = line.strip() if line.startswith("[") else table
        key = line.partition("=")[0].strip()
        if table != "[expected]" and not (table == "[about]" and key in OF_THE_RUN):
            kept.append(line)
    while kept and not kept[-1].strip():
        kept.pop()
    lines = [*kept, *(f"{name} = {json.dumps(value)}" for name, value in told.items())]
    lines += [
        "",
        "[expected]",
        "tolerance = { " + ", ".join(f"{name} = {each}" for name, each in WRITTEN.items()) + " }",
    ]
    lines += [f"{name} = {value if isinstance(value, int) else f'{value:.4g}'}" for name, value in found.items()]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
