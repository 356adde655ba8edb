"""What measuring and rounding ask of a device whose memory the CPU cannot read: counted, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BEFORE = {
    "measure 7 sites 2 formats": 13669,
    "measure 7 sites 7 formats": 16417,
    "measure 3 sites 7 formats": 8424,
    "measure rtn 7 sites 7 formats": 2694,
    "round 7 sites 1 format": 3811,
    "round 7 sites 7 formats": 3697,
    "round 3 sites 1 format": 2017,
}
"""Operations of one block at commit f8dc4d7 (2026-11-30), which did one site and one format after the other."""

OF_THOSE = 0.4

MEASURED = {"transfers": 6, "waits": 5, "waits_per_batch": 0}
NEAREST = {"transfers": 3, "waits": 2, "waits_per_batch": 0}
ROUNDED = {"transfers": 1, "waits": 1, "waits_per_batch": 0}
"""Of a block: rows of gradients go up; sums, factors, two kinds of GPTQ's shares and the backward flow come down."""


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.far.counted"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("case", BEFORE)
def test_copies_and_waits_do_not_depend_on_sites_and_formats(found: dict[str, Any], case: str) -> None:
    counts = found["cases"][case]
    expected = NEAREST if "rtn" in case else MEASURED if case.startswith("measure") else ROUNDED
    assert {name: counts[name] for name in expected} == expected


@pytest.mark.parametrize("case", BEFORE)
def test_so_many_operations(found: dict[str, Any], case: str) -> None:
    assert found["cases"][case]["operations"] <= OF_THOSE * BEFORE[case]


def test_the_figures_are_those_of_the_cpu(found: dict[str, Any]) -> None:
    """There C files round; here torch's operations do: a value on the edge between two codes may get the other."""
    assert found["differences"]["forward"] < 1e-5
    assert found["differences"]["backward"] < 1e-5
    assert found["differences"]["shares that differ"] < 0.05


def test_counting_counts(found: dict[str, Any]) -> None:
    """Each format's weights are rounded by some operation, and each batch goes through the model."""
    cases = found["cases"]
    assert cases["measure 7 sites 7 formats"]["operations"] > cases["measure 7 sites 2 formats"]["operations"]
    assert cases["measure 7 sites 7 formats"]["operations"] > cases["measure 3 sites 7 formats"]["operations"]
    assert all(case["operations_per_batch"] > 20 for case in cases.values())
    assert cases["measure 7 sites 7 formats"]["by_name"]["round_columns"] > 0
