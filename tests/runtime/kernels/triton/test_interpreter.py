"""The kernel's numbers, in Triton's interpreter, against the specification in float64; and that this could fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from tests.runtime.kernels.triton.cases import wrong

ROUNDING = 1e-6


def interpreted(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.runtime.kernels.triton.interpreted", what],
        cwd=Path(__file__).parents[4],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_width_and_epilogue_is_right() -> None:
    """2 to 8 bits and floats, A16 and A8, ragged in all three dimensions; each operand ends at an unreadable page."""
    done = interpreted("cases")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert {result["name"]: wrong(result, ROUNDING) for result in results if wrong(result, ROUNDING)} == {}
    assert max(result["of"] for result in results if result["integer"]) == 98_304


def test_values_are_those_of_the_weight() -> None:
    """To the last bit: a scale of float16 times a code is exact in float32, and is rounded once."""
    done = interpreted("values")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) == 17
    assert {result["name"]: wrong(result, 0) for result in results if wrong(result, 0)} == {}


def test_tokens_are_scaled_and_normed() -> None:
    """Scales, halves and codes to the last bit; a token of zeros, and more columns than one turn has."""
    done = interpreted("tokens")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) == 9
    bounds = [ROUNDING if result["name"].startswith("norm") else 0 for result in results]
    found = [wrong(result, bound) for result, bound in zip(results, bounds, strict=True)]
    assert found == [""] * 9


@pytest.mark.parametrize(
    ("what", "count"), [("mutations", 26), ("mutations of values", 8), ("mutations of tokens", 11)]
)
def test_mutations_are_caught(what: str, count: int) -> None:
    done = interpreted(what)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) == count
    assert [name for name, result in results.items() if not wrong(result, ROUNDING)] == []


def test_a_read_past_the_end_is_caught() -> None:
    assert interpreted("guard").returncode == -signal.SIGSEGV
