"""How far natprec's rows lie below the best peer's, on the same text: ratios of their distortions, with intervals.

Both rows of a ratio are judged on the same samples, which are easy or hard for both: resampled in pairs, they say far
more than two intervals beside each other. A method that was run with several seeds counts by its mean at each sample.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from natprec.comparison.methods import METHODS
from natprec.utils.statistics import bootstrap_ratio

Row = dict[str, Any]


def by_method(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """(method, bits) → the rows that succeeded, one for each seed, in their order."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if row["status"] == "ok":
            found.setdefault((row["method"], row["bits"]), []).append(row)
    return found


def mean_and_spread(rows: Sequence[Row]) -> tuple[float, float | None]:
    """Of the distortion over seeds; the standard deviation of one row is not known."""
    values = [row["kl_mean"] for row in rows]
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def ratios(rows: Sequence[Row], widths: Sequence[int], seed: int) -> list[dict[str, Any]]:
    """Of each of natprec's methods and each width the distortion over that of the best peer of that width.

    Returns:
        `method`, `bits`, `peer`, `ratio`, `ci95` (paired, over samples), `seeds`; nothing where no peer succeeded.
    """
    known = by_method(rows)
    found = []
    for bits in widths:
        peers = {method: each for (method, width), each in known.items() if width == bits and not METHODS[method].own}
        if not peers:
            continue
        best = min(peers, key=lambda method: mean_and_spread(peers[method])[0])
        below = _by_sample(peers[best])
        for (method, width), own in known.items():
            if width == bits and METHODS[method].own:
                above = _by_sample(own)
                found.append({
                    "method": method, "bits": bits, "peer": best, "ratio": float(above.mean() / below.mean()),
                    "ci95": list(bootstrap_ratio(above, below, seed)), "seeds": len(own),
                })  # fmt: skip
    return found


def _by_sample(rows: Sequence[Row]) -> np.ndarray:
    """(samples,), the mean over seeds."""
    return np.array([row["kl_samples"] for row in rows]).mean(0)
