"""Published figures beside the user's own: a few rows of ML.ENERGY's leaderboard, and the project's founding figures.

E = a + b / batch fits every dense model there: b is what a step costs whatever the batch (weights are read, clocks
run), a what each token costs on top. The founding figures, 160 tokens/Wh at home and 1,500 in a data centre, are the
arithmetic of `FOUNDING`; their factor of nine is that of batching.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from natprec.energy.convert import kwh_per_million, tokens_per_wh

FILE = Path(__file__).with_name("anchors.json")

FOUNDING = (("at home, one user", 20.0, 450.0), ("data centre, as founded", 1000.0, 2400.0))
"""Name, tokens per second, watts: assumed when the project began, not measured."""


@dataclass(frozen=True)
class Fit:
    """E = a + b / batch, joules per token.

    Attributes:
        worst: the largest residual, as a share of E.
    """

    a: float
    b: float
    worst: float

    def at(self, batch: float) -> float:
        """Joules per token."""
        return self.a + self.b / batch


def fit(batches: Sequence[float], joules: Sequence[float]) -> Fit:
    """Least squares of relative residuals, from two points at least.

    >>> found = fit([1, 2, 4], [5.0, 3.0, 2.0])
    >>> f"{found.a:.3f} {found.b:.3f} {found.worst:.3f}"
    '1.000 4.000 0.000'
    """
    ones = [1 / energy for energy in joules]
    parts = [1 / (batch * energy) for batch, energy in zip(batches, joules, strict=True)]
    aa, bb = sum(x * x for x in ones), sum(y * y for y in parts)
    ab, ra, rb = sum(x * y for x, y in zip(ones, parts, strict=True)), sum(ones), sum(parts)
    determinant = aa * bb - ab * ab
    a, b = (ra * bb - rb * ab) / determinant, (aa * rb - ab * ra) / determinant
    made = Fit(a, b, 0.0)
    worst = max(abs(made.at(batch) / energy - 1) for batch, energy in zip(batches, joules, strict=True))
    return Fit(a, b, worst)


@functools.cache
def rows() -> tuple[dict[str, Any], ...]:
    """The rows that are quoted, as their source has them."""
    return tuple(json.loads(FILE.read_text(encoding="utf-8"))["rows"])


def published() -> dict[str, Any]:
    """Model by model: batches, joules, tokens/Wh, and the fit; then the founding figures."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows():
        groups.setdefault((row["model"], row["gpu_model"], row["num_gpus"]), []).append(row)
    models = []
    for (model, gpu, gpus), several in groups.items():
        batches = [row["avg_batch_size"] for row in several]
        joules = [row["energy_per_token_joules"] for row in several]
        models.append(
            {
                "model": model,
                "precision": several[0]["weight_precision"],
                "gpu": gpu,
                "gpus": gpus,
                "batches": batches,
                "joules_per_token": joules,
                "tokens_per_wh": [tokens_per_wh(each) for each in joules],
                "fit": asdict(fit(batches, joules)),
            }
        )
    founding = [
        {"name": name, "tokens_per_second": rate, "watts": watts, "joules_per_token": watts / rate,
         "tokens_per_wh": tokens_per_wh(watts / rate), "kwh_per_million_tokens": kwh_per_million(watts / rate)}
        for name, rate, watts in FOUNDING
    ]  # fmt: skip
    return {"source": json.loads(FILE.read_text(encoding="utf-8"))["source"], "models": models, "founding": founding}
