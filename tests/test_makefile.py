"""`make demo` installs what the demo needs, and picks a build of torch within seconds whatever the network does."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("torch_index", ROOT / "scripts" / "torch_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_demo_installs_neither_linters_nor_triton() -> None:
    if shutil.which("make") is None:
        pytest.skip("needs make")
    told = subprocess.run(
        ["make", "-n", "demo", "VENV=/nonexistent"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "natprec quantize" in told
    for needless in ("triton", "dev", "minilm", "plot", "data,"):
        assert needless not in told


def test_the_build_for_cpus_is_for_machines_without_a_gpu_that_reach_it(script: Any) -> None:
    assert script.chosen("auto", gpu=False, linux=True, answers=True) == script.CPU
    assert script.chosen("auto", gpu=True, linux=True, answers=True) == ""
    assert script.chosen("auto", gpu=False, linux=False, answers=True) == ""
    assert script.chosen("auto", gpu=False, linux=True, answers=False) == ""
    assert script.chosen("", gpu=False, linux=True, answers=True) == ""
    assert script.chosen("https://x", gpu=True, linux=True, answers=False) == "https://x"


def test_an_index_that_does_not_answer_is_given_up(script: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        start = time.monotonic()
        assert not script.answers(f"http://127.0.0.1:{silent.getsockname()[1]}/", seconds=0.3)
        assert time.monotonic() - start < 5
