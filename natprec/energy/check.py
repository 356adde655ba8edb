"""Published rows against the floors: is watts / (tokens per second) their joules, and do they lie above physics?"""

from __future__ import annotations

import statistics
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from natprec.energy.constants import constant
from natprec.energy.convert import tokens_per_wh
from natprec.energy.floors import Floor, roofline_seconds
from natprec.errors import InputError
from natprec.inspection.information.landauer import landauer_joules
from natprec.utils.own_files import LARGEST, parsed
from natprec.utils.schema import Above0, Place, Positive, read

WIDTHS = {"bfloat16": 16.0, "float16": 16.0, "fp8": 8.0, "int8": 8.0, "mxfp4": 4.25, "nvfp4": 4.5, "int4": 4.0}
"""Bits of a stored weight, scales included; the fewest where it varies."""

AGREES = 1e-3
"""Share by which watts / (tokens per second) may differ from a row's joules."""


@dataclass(frozen=True)
class Published:
    """What is needed of a row: energy of all GPUs together, steady state."""

    model: str
    activated_params_billions: Above0
    weight_precision: str
    gpu_model: str
    num_gpus: Positive
    avg_batch_size: Above0
    avg_power_watts: Above0
    energy_per_token_joules: Above0
    output_throughput_tokens_per_sec: Above0

    def floor(self) -> Floor:
        """Of one token: the active weights are read once in each step.

        Raises:
            InputError: an unknown precision.
        """
        if self.weight_precision not in WIDTHS:
            known = ", ".join(sorted(WIDTHS))
            raise InputError(f"weight_precision {self.weight_precision!r} of {self.model!r} is none of {known}")
        weights = self.activated_params_billions * 1e9
        moved = weights * WIDTHS[self.weight_precision] / 8 / self.avg_batch_size
        return Floor(
            weights_joules=landauer_joules(8 * moved),
            bytes_moved=moved,
            bytes_joules=8 * moved * constant("joules_per_bit", "hbm2").low,
            roofline_seconds=roofline_seconds(moved, weights, self.gpu_model, self.num_gpus),
        )


def load(path: Path) -> list[Published]:
    """Rows of a file in the form of ML.ENERGY's leaderboard: `{"source": …, "rows": […]}`.

    Raises:
        InputError: no such file, no JSON, or a row without a figure, or with one that is negative, 0 or NaN.
    """
    place = Place(f"published rows {str(path)!r}", "give a file with 'source' and 'rows', as ML.ENERGY's are")
    try:
        with path.open("rb") as file:
            value = parsed(file.read(LARGEST))
    except (OSError, ValueError) as error:
        raise InputError(f"{place.file} cannot be read ({error}); {place.remedy}") from error
    rows = value.get("rows") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise place.wrong("has no rows")
    names = {each.name for each in fields(Published)}
    found = []
    for number, row in enumerate(rows):
        own = {name: each for name, each in row.items() if name in names} if isinstance(row, dict) else row
        found.append(read(Published, own, place.within("rows").at(number)))
    return found


def check(path: Path) -> dict[str, Any]:
    """Each row against its floors and against itself."""
    faults: list[dict[str, Any]] = []
    shares, disagree = [], 0
    rows = load(path)
    for number, row in enumerate(rows):
        joules = row.avg_power_watts / row.output_throughput_tokens_per_sec
        floor = row.floor()
        wrong = floor.below(row.energy_per_token_joules, 1 / row.output_throughput_tokens_per_sec)
        if abs(joules / row.energy_per_token_joules - 1) > AGREES:
            disagree += 1
            wrong.append(
                f"watts / (tokens per second) is {joules:.4g} J, its joules per token {row.energy_per_token_joules:.4g}"
            )
        assert floor.bytes_joules is not None
        shares.append(floor.bytes_joules / row.energy_per_token_joules)
        if wrong:
            faults.append({"row": number, "model": row.model, "gpu": row.gpu_model, "faults": wrong})
    return {
        "source": "published",
        "file": path.name,
        "rows": len(rows),
        "consistent": len(rows) - disagree,
        "above_floors": len(rows) - sum(any("below" in each for each in fault["faults"]) for fault in faults),
        "largest_share_of_bytes_floor": max(shares),
        "median_share_of_bytes_floor": statistics.median(shares),
        "most_tokens_per_wh": tokens_per_wh(min(row.energy_per_token_joules for row in rows)),
        "faults": faults,
    }
