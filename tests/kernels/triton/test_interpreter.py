"""The kernel's numbers, in Triton's interpreter, against the specification in float64; and that this could fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

ROUNDING = 1e-6
"""Of the largest product: what float32 sums may be off by. Operands and weights are exact."""


def interpreted(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kernels.triton.interpreted", what],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def wrong(result: dict[str, Any]) -> str:
    """What is wrong with a result; empty where it is right."""
    if not result["canaries"]:
        return "something round the output was written"
    if result["integer"]:
        far = result["largest"] > 1 or result["different"] > max(1, result["of"] // 10_000)
        return f"{result['different']} codes differ, by {result['largest']}" if far else ""
    return "" if result["relative"] <= ROUNDING else f"off by {result['relative']:.1e}"


def test_every_width_and_epilogue_is_right() -> None:
    """2 to 8 bits, A16 and A8, ragged in all three dimensions, each operand ending at an unreadable page."""
    done = interpreted("cases")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert {result["name"]: wrong(result) for result in results if wrong(result)} == {}
    assert max(result["of"] for result in results if result["integer"]) == 98_304


def test_mutations_are_caught() -> None:
    done = interpreted("mutations")
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads(done.stdout)
    assert len(results) == 15
    assert [name for name, result in results.items() if not wrong(result)] == []


def test_a_read_past_the_end_is_caught() -> None:
    assert interpreted("guard").returncode == -signal.SIGSEGV
