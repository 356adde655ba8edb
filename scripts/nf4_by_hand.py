"""KL at equal bytes: NF4 with the first or the last layers left out by hand, and what natprec leaves out.

    natprec measure --model smollm2-135m --engine bitsandbytes --data valid.txt --out bnb.measurement
    python scripts/nf4_by_hand.py bnb.measurement --model smollm2-135m --data valid.txt --eval-data test.txt --work hand

Hand-made bases are NF4 with double quantization, rounded to nearest as bitsandbytes does, but for one block of layers
at 16 bits: the first, the last, or both; and plain NF4 without double quantization. For the bytes of each natprec
solves, and its plan is rounded to nearest and by GPTQ. All are written, read back through bitsandbytes and judged on
the same tokens. Finished rows are kept in `--work`, and a later call goes on from there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import natprec
from natprec.formats import parse_format
from natprec.measurement import Measurement
from natprec.models.loading import load_model
from natprec.solver import Plan
from natprec.solver.assemble import Target, assemble
from natprec.solver.problem import opened

TOKENS = 4096


def by_hand(found: Measurement, fmt: str, leaves: Callable[[int], bool]) -> Plan:
    """One format for all Linears but those of some blocks.

    Args:
        leaves: whether a block, by its number, stays at 16 bits.
    """
    problem, wanted = opened(found, "bitsandbytes", "rtn", "16", "16", None), parse_format(fmt)
    chosen = []
    for group in problem.groups:
        site, formats = group.curves[0].site, [pair.weight for pair in group.pairs]
        chosen.append(formats.index(None if leaves(site.segment) or wanted not in formats else wanted))
    return assemble(found, problem, chosen, 0.0, Target(None, None, "model", "rtn", "16", None, None))


def judged(plan: Plan, rounding: str, model: Any, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A plan written, read back and judged."""
    if not folder.exists():
        data = options.data if rounding != "rtn" else None
        natprec.save(natprec.apply(plan, model.model, model.tokenizer, data, rounding=rounding, tokens=TOKENS), folder)
    found = natprec.verify(folder, model.model, options.eval_data, model.tokenizer, tokens=TOKENS)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return {"bytes": size, "bits": plan.bits_per_weight, "kl": found.kl_mean, "kl_ci95": list(found.kl_ci95)}


def main() -> None:
    """Each hand-made base beside natprec's of the same bytes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--eval-data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    report_file = options.work / "report.json"
    report: dict[str, Any] = json.loads(report_file.read_text()) if report_file.exists() else {}
    found, model = Measurement.load(options.measurement), load_model(options.model)
    last = max(curve.site.segment for curve in found.weights.values() if curve.site.role == "linear")
    hands: dict[str, Plan] = {
        "nf4": by_hand(found, "nf4-g64", lambda block: False),
        "nf4-dq, first out": by_hand(found, "nf4-g64-dq", lambda block: block == 0),
        "nf4-dq, last out": by_hand(found, "nf4-g64-dq", lambda block: block == last),
        "nf4-dq, first and last out": by_hand(found, "nf4-g64-dq", lambda block: block in (0, last)),
    }
    for name, plan in hands.items():
        same = {
            rounding: natprec.solve(found, max_size=plan.stored_bytes, rounding=rounding)
            for rounding in ("rtn", "gptq")
        }
        ways = {name: (plan, "rtn"), **{f"natprec {way}, like {name}": (own, way) for way, own in same.items()}}
        for label, (own, way) in ways.items():
            if label not in report:
                folder = options.work / label.replace(",", "").replace(" ", "-")
                report[label] = judged(own, way, model, options, folder)
                report_file.write_text(json.dumps(report, indent=1))
        hand = report[name]["kl"]
        for way in same:
            row = report[f"natprec {way}, like {name}"]
            ratio = row["kl"] / hand
            print(f"{name}: {hand:.4g} in {report[name]['bytes']} bytes; natprec {way} {row['kl']:.4g}, {ratio:.3f}, "
                  f"in {row['bytes']} bytes", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
