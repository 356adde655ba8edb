"""natprec's rows over the best peer's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from natprec.comparison.ratios import by_method, mean_and_spread, ratios
from natprec.utils.statistics import bootstrap_ratio


def row(method: str, samples: list[float], bits: int = 4, status: str = "ok") -> dict[str, Any]:
    mean = sum(samples) / max(1, len(samples))
    return {"method": method, "bits": bits, "status": status, "kl_mean": mean, "kl_samples": samples}


def test_the_best_peer_of_each_width_counts() -> None:
    rows = [
        row("gptq", [0.4, 0.6]), row("autoround", [0.2, 0.4]), row("rtn", [], status="failed"),
        row("gptq", [1.0, 2.0], 3), row("natprec", [0.1, 0.2]), row("natprec", [0.2, 0.3]), row("natprec", [0.5, 1], 3),
    ]  # fmt: skip
    four, three = ratios(rows, [4, 3], 0)
    assert (four["method"], four["bits"], four["peer"], four["seeds"]) == ("natprec", 4, "autoround", 2)
    assert four["ratio"] == pytest.approx(0.2 / 0.3)
    assert (three["peer"], three["seeds"]) == ("gptq", 1)
    assert three["ci95"] == pytest.approx([0.5, 0.5]), "half at every sample: nothing is uncertain in pairs"
    assert ratios(rows[4:], [4, 3], 0) == [], "without a peer there is no ratio"


def test_seeds_are_one_row_with_a_spread() -> None:
    rows = [row("natprec", [0.1, 0.2]), row("natprec", [0.2, 0.3]), row("gptq", [0.4, 0.6])]
    assert [len(each) for each in by_method(rows).values()] == [2, 1]
    assert mean_and_spread(rows[:2]) == (pytest.approx(0.2), pytest.approx(0.1 / 2**0.5))
    assert mean_and_spread(rows[2:]) == (0.5, None)


def test_pairs_say_more_than_two_intervals() -> None:
    draw = np.random.default_rng(0)
    below = draw.lognormal(size=64)
    above = 0.7 * below * (1 + 0.05 * draw.standard_normal(64))
    low, high = bootstrap_ratio(above, below)
    assert 0.65 < low < 0.7 < high < 0.75
    apart = [bootstrap_ratio(each, np.full(64, each.mean())) for each in (above, below)]
    assert high - low < min(end[1] - end[0] for end in apart) / 4
