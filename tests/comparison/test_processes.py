"""Whatever a peer does, the run goes on and the row says what it was."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.comparison.methods import Method
from natprec.comparison.peers.worker import Job
from natprec.comparison.processes import interpreter, run_job

FAKE = Path(__file__).with_name("fake_peer.py")


def fake(what: str, module: str = "json") -> Method:
    return Method(str(FAKE.with_suffix("")), module, "some-package", {"do": what})


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tokens") / "calibration.safetensors"
    save_file({"input_ids": torch.arange(32).reshape(2, 16)}, file)
    return file


def job(method: Method, model: Path, calibration: Path) -> Job:
    return Job("fake", str(model), str(calibration), 4, 32, "float16", None, dict(method.settings))


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ("fail", "ValueError: no such group"),
        ("die", "killed by SIGKILL (out of memory?); see a/log.txt"),
        ("leave", "ended with exit code 7; see a/log.txt"),
    ],
)
def test_a_failure_is_a_status(what: str, status: str, tmp_path: Path, tiny_folder: Path, calibration: Path) -> None:
    method = fake(what)
    result = run_job(job(method, tiny_folder, calibration), method, tmp_path / "a", sys.executable, 300)
    log = tmp_path / "a" / "log.txt"
    assert result == {"status": status}
    assert f"told to {what} with (2, 16)" in log.read_text()


def test_a_hanging_peer_is_stopped(tmp_path: Path, tiny_folder: Path, calibration: Path) -> None:
    method = fake("hang")
    start = time.monotonic()
    result = run_job(job(method, tiny_folder, calibration), method, tmp_path / "a", sys.executable, 0.5)
    assert result["status"] == "stopped after 0.5 s; raise --time-limit"
    assert time.monotonic() - start < 30


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_a_peer_does_not_outlive_the_run(tmp_path: Path, tiny_folder: Path, calibration: Path) -> None:
    """Killed without a chance to clean up, in the middle of a method."""
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.comparison.test_processes import fake, job, run_job\n"
        "model, calibration, folder = map(Path, sys.argv[1:])\n"
        "run_job(job(fake('hang'), model, calibration), fake('hang'), folder, sys.executable, 600)"
    )
    log = tmp_path / "a" / "log.txt"
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(tiny_folder), str(calibration), str(tmp_path / "a")],
        cwd=Path(__file__).parents[2],
    )
    worker = int(wait_for(lambda: log.exists() and re.search(r"process (\d+)", log.read_text()))[1])
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(worker))
    assert "told to hang" in log.read_text()


def wait_for(condition: Any) -> Any:
    for _ in range(600):
        found = condition()
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError("waited for two minutes")


def alive(process: int) -> bool:
    """Not there, or ended and not yet waited for."""
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_peer_that_is_not_installed_is_not_started(tmp_path: Path, tiny_folder: Path, calibration: Path) -> None:
    method = fake("round", module="no_such_module_here")
    result = run_job(job(method, tiny_folder, calibration), method, tmp_path / "a", sys.executable, 300)
    assert result["status"].startswith("not installed: ")
    assert "pip install some-package" in result["status"]
    assert not (tmp_path / "a").exists()


def test_what_a_peer_leaves(tmp_path: Path, tiny_folder: Path, calibration: Path) -> None:
    """Time, memory, versions, weights to judge; at 16 bits what the peer left alone, and its scales."""
    method = fake("round")
    result = run_job(job(method, tiny_folder, calibration), method, tmp_path / "a", sys.executable, 300)
    assert result["status"] == "ok"
    assert 0 < result["seconds"] < 60
    assert 50e6 < result["peak_bytes"] < 4e9
    assert result["versions"]["torch"] == torch.__version__
    dense = load_file(tmp_path / "a" / "dense.safetensors")
    assert {tensor.dtype for tensor in dense.values()} == {torch.float32}
    assert "model.embed_tokens.weight" in dense
    assert "lm_head.weight" not in dense  # its twin
    stored = load_file(tmp_path / "a" / "checkpoint" / "model.safetensors")
    dtypes = {name.rpartition(".")[2] + (" of proj" if "proj" in name else ""): t.dtype for name, t in stored.items()}
    assert dtypes == {"weight": torch.float16, "weight of proj": torch.int8, "scale of proj": torch.float16}


def test_which_interpreter() -> None:
    own = Method("own", "natprec", "natprec", own=True)
    chosen = {"": "/peers/python", "gptq": "/other/python"}
    assert interpreter("gptq", fake("round"), chosen) == "/other/python"
    assert interpreter("rtn", fake("round"), chosen) == "/peers/python"
    assert interpreter("natprec", own, chosen) == sys.executable
    assert interpreter("rtn", fake("round"), {}) == sys.executable
