from __future__ import annotations

import io
import itertools
import random
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from natprec.comparison.bench import FIGURES
from natprec.comparison.plot import pareto, plot, spread
from natprec.comparison.report import comparison_table

WIDTH = 80


def row(method: str, kl: float, size: int) -> dict[str, Any]:
    return {
        "method": method, "bits": 4, "status": "ok", "kl_mean": kl, "kl_ci95": [kl * 0.9, kl * 1.1],
        "kl_samples": [kl * 0.8, kl * 1.2], "kl_p99": 9 * kl,
        "perplexity": 38.5, "perplexity_reference": 32.0, "top1_agreement": 0.9, "stored_bytes": size,
        "bits_per_weight": 4.3, "seconds": 7384.0, "peak_bytes": 3_000_000_000, "layer_mse": 0.01, "weighted_mse": 0.01,
    }  # fmt: skip


@pytest.fixture
def report() -> dict[str, Any]:
    failed = {"method": "awq", "bits": 4, "status": "ValueError: no such group", **dict.fromkeys(FIGURES)}
    return {
        "model": "m",
        "eval_tokens": 4096,
        "rows": [row("gptq", 0.1, 90_000_000), failed, row("natprec-transformers", 0.05, 90_000_000)],
        "ratios": [],
        "proxies": {
            "layer_mse": {"spearman": 0.5, "ci95": [0.1, 0.9], "rows": 5},
            "weighted_mse": {"spearman": None, "ci95": None, "rows": 2},
        },
    }


def test_the_table_orders_by_kl_and_gives_reasons(report: dict[str, Any]) -> None:
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(comparison_table(report))
    lines = out.getvalue().splitlines()
    assert "…" not in out.getvalue()
    assert lines[1].split()[:3] == ["natprec-transformers", "4", "0.0500"]
    assert lines[2].split()[:3] == ["gptq", "4", "0.1000"]
    assert "2 h 03 min" in lines[1], "nothing is cut off"
    assert "weighted_mse" not in out.getvalue(), "two rows have no order to compare"
    assert "awq 4  ValueError: no such group" in out.getvalue()
    assert "natural_bits" not in report["rows"][0]
    report["rows"][2]["natural_bits"] = 4.25
    Console(file=out, width=WIDTH).print(comparison_table(report))
    assert "natprec-transformers 4: 4.25 bits (mean b*)" in out.getvalue()
    assert "next-token entropy 5.00 bits" in out.getvalue()
    assert "layer_mse orders 5 rows as KL does: 0.50 (95 %: 0.10 to 0.90)" in out.getvalue()


def test_the_front_is_what_nothing_beats() -> None:
    draw = random.Random(0)
    rows = [{"stored_bytes": draw.randint(1, 20), "kl_mean": draw.randint(1, 20)} for _ in range(40)]
    front = {(one["stored_bytes"], one["kl_mean"]) for one in pareto(rows)}
    for one in rows:
        size, kl = one["stored_bytes"], one["kl_mean"]
        beaten = any(other["stored_bytes"] <= size and other["kl_mean"] <= kl and other != one for other in rows)
        assert ((size, kl) in front) is not beaten


def test_the_plot_is_a_picture(report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert plot(report, tmp_path / "pareto.png")
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    assert not plot({**report, "rows": []}, tmp_path / "none.png")


def test_labels_keep_their_order_and_their_distance() -> None:
    draw = random.Random(0)
    heights = [draw.random() for _ in range(30)]
    placed = spread(heights, 0.05)
    order = sorted(range(30), key=heights.__getitem__)
    steps = [placed[after] - placed[before] for before, after in itertools.pairwise(order)]
    assert min(steps) > 0.05 - 1e-9
    assert spread([0.1, 0.5, 0.9], 0.05) == [0.1, 0.5, 0.9]
