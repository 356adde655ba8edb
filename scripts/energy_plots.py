"""The plots and the table of floors of docs/energy.md.

    python scripts/energy_plots.py --out docs --run NAME=energy.json …
    python scripts/energy_plots.py --out docs --point NAME=energy.json=verification.json …

Each `--run` is drawn into joules against batch, each `--point` into tokens/Wh against KL; both are files of `natprec
energy --out` and `natprec verify`. The table compares three model sizes at three widths: by the floors of the bytes
moved and Landauer's, and by the published row that is nearest.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from natprec.energy.anchors import rows
from natprec.energy.constants import constant
from natprec.energy.convert import tokens_per_wh
from natprec.energy.floors import Floor
from natprec.energy.plot import by_batch, by_kl
from natprec.inspection.information.landauer import landauer_joules

SIZES = {"8B": 8e9, "70B": 70e9, "405B": 405e9}
WIDTHS = (16, 8, 4)
BATCHES = (1, 8, 64)
PUBLISHED = {("8B", 16): "Llama-3.1-8B-Instruct", ("70B", 16): "Llama-3.1-70B-Instruct",
             ("405B", 16): "Llama-3.1-405B-Instruct", ("405B", 8): "Llama-3.1-405B-Instruct-FP8"}  # fmt: skip


def floor(weights: float, bits: float, batch: float) -> Floor:
    """Of a model that reads its weights once in each step, nothing else counted."""
    moved = weights * bits / 8 / batch
    return Floor(
        weights_joules=landauer_joules(8 * moved), bytes_moved=moved,
        bytes_joules=8 * moved * constant("joules_per_bit", "hbm2").low,
    )  # fmt: skip


def table() -> str:
    """Markdown: size and width by batch, most tokens/Wh by each floor, and what was published."""
    heads = ("weights", "bits", "batch", "bytes: at least, J", "at most, tokens/Wh", "Landauer: at least, J",
             "published, J", "tokens/Wh", "of the bytes' floor")  # fmt: skip
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for size, weights in SIZES.items():
        for bits in WIDTHS:
            for batch in BATCHES:
                found = floor(weights, bits, batch)
                assert found.bytes_joules is not None
                joules = measured(PUBLISHED.get((size, bits), ""), batch)
                cells = [size, bits, batch, f"{found.bytes_joules:.2g}", f"{tokens_per_wh(found.bytes_joules):,.0f}",
                         f"{found.landauer_joules:.1e}"]  # fmt: skip
                if joules is None:
                    cells += ["", "", ""]
                else:
                    times = f"{joules / found.bytes_joules:.0f} ×"
                    cells += [f"{joules:.3g}", f"{tokens_per_wh(joules):,.0f}", times]
                lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def measured(name: str, batch: int) -> float | None:
    """The published joules of a model at a batch."""
    found = [row for row in rows() if row["model"].endswith(f"/{name}") and row["max_num_seqs"] == batch]
    return min((float(row["energy_per_token_joules"]) for row in found), default=None)


def load(file: str) -> dict[str, Any]:
    """A file of JSON."""
    return json.loads(Path(file).read_text(encoding="utf-8"))


def main() -> None:
    """Draw, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--run", action="append", default=[], metavar="NAME=energy.json")
    parser.add_argument("--point", action="append", default=[], metavar="NAME=energy.json=verification.json")
    options = parser.parse_args()
    batches = [2**step for step in range(13)]
    floors = [
        (f"floor of the bytes, 8B at {bits} bits", batches, [floor(8e9, bits, batch) for batch in batches])
        for bits in WIDTHS
    ]
    runs = [(name, load(file)) for name, _, file in (each.partition("=") for each in options.run)]
    by_batch(runs, floors, options.out / "energy-batch.svg")
    points = []
    for each in options.point:
        name, energy, verification = each.split("=")
        row = next(row for row in load(energy)["rows"] if row["phase"] == "decode" and row["batch"] == 1)
        points.append((name, load(verification)["kl_mean"], row))
    if points:
        by_kl(points, options.out / "energy-kl.svg")
    print(table())


if __name__ == "__main__":
    main()
