"""The time of a token, predicted from a table of `natprec costs` and measured, for whole plans on this CPU.

    natprec measure --model smollm2-135m --engine natprec --data valid.txt --out cpu.measurement
    python scripts/fastest_plan.py cpu.measurement --model smollm2-135m --work plans --cpu-time

For each tolerance the plan of least bytes and the plan of least decoding time are written (rounded to nearest: no time
depends on the codes). The products of a table are timed, then whole tokens of all plans in turn. What a token takes
beside its products is taken from the first plan alone; the others are predicted. With `--cpu-time` and one thread the
process's CPU time counts, for machines that others use. The table and the plans in `--work` are used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch

import natprec
from natprec.costs import CostTable
from natprec.measurement import Measurement
from natprec.models.loading import load_model
from natprec.timing.table import Asked, time_table
from natprec.timing.whole import products_microseconds, token_seconds
from natprec.utils.progress import Stages

EPSILONS = (0.02, 0.05, 0.2)


def table_of(file: Path, measurement: Path, cpu_time: bool, repeat: int) -> CostTable:
    """The table, timed now unless it is there."""
    if not file.exists():
        asked = Asked("natprec", None, "cpu", (1,), repeat, cpu_time, (), measurement, None, "")
        time_table(asked, Stages(), file, resume=True)
    return CostTable.load(file)


def written(found: Measurement, eps: float, minimize: str, costs: Path, model: Any, folder: Path) -> Path:
    """A checkpoint of a plan."""
    if not folder.exists():
        named = {} if minimize == "bytes" else {"minimize": minimize, "costs": costs}
        plan = natprec.solve(found, eps, rounding="rtn", **named)
        natprec.save(natprec.apply(plan, model.model, model.tokenizer, rounding="rtn"), folder)
    return folder


def main() -> None:
    """Table, plans, whole tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder of the table and the plans")
    parser.add_argument("--eps", type=float, nargs="+", default=EPSILONS)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(exist_ok=True)
    costs = options.work / "costs.toml"
    table = table_of(costs, options.measurement, options.cpu_time, options.rounds)
    found, model = Measurement.load(options.measurement), load_model(options.model)
    folders = {
        f"{minimize} {eps:g}": written(found, eps, minimize, costs, model, options.work / f"{minimize}-{eps:g}")
        for eps in options.eps
        for minimize in ("bytes", "decode")
    }
    runnables = {name: natprec.load(folder) for name, folder in folders.items()}
    times: dict[str, list[float]] = {name: [] for name in runnables}
    for _ in range(options.rounds):
        for name, runnable in runnables.items():
            times[name].append(1e6 * token_seconds(runnable, options.cpu_time))
    measured = {name: statistics.median(own) for name, own in times.items()}
    products = {name: products_microseconds(runnable, table) for name, runnable in runnables.items()}
    first = next(iter(measured))
    rest = measured[first] - products[first]
    rows = [
        {
            "plan": name, "bytes": natprec.Plan.load(folders[name] / "plan.json").stored_bytes,
            "kl_predicted": natprec.Plan.load(folders[name] / "plan.json").kl_predicted,
            "products": products[name], "predicted": products[name] + rest, "measured": measured[name],
            "off": (products[name] + rest) / measured[name] - 1,
        }
        for name in measured
    ]  # fmt: skip
    faster = {
        f"{eps:g}": statistics.median(
            one / other - 1 for one, other in zip(times[f"decode {eps:g}"], times[f"bytes {eps:g}"], strict=True)
        )
        for eps in options.eps
    }
    report = {
        "rest": rest, "calibrated_on": first, "rows": rows, "decode_over_bytes": faster,
        "worst": max(abs(row["off"]) for row in rows[1:]), "clock": "CPU time" if options.cpu_time else "wall",
    }  # fmt: skip
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
