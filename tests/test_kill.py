"""A run that is really killed: nothing half-written, and --resume arrives at the same bits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from tests.conftest import tiny_model
from tests.run_command import left_behind, natprec

BLOCKS = 6
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, text_file: Path) -> list[str]:
    """A model large enough for a sweep of a few seconds, whose segments can be told apart from outside."""
    model = tmp_path_factory.mktemp("kill") / "model"
    tiny_model(num_hidden_layers=BLOCKS, hidden_size=128, intermediate_size=256).save_pretrained(model)
    tiny_tokenizer.save_pretrained(model)
    return ["--model", str(model), "--data", str(text_file), "--tokens", "2048", "--sequence-length", "64"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> Path:
    """The measurement of a run that nobody disturbed."""
    file = tmp_path_factory.mktemp("whole") / "m"
    result = subprocess.run([*command("measure", options, file)], env=ENVIRONMENT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return file


def command(name: str, options: list[str], out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "natprec", name, *options, "--out", str(out), *more]


def header(file: Path) -> dict[str, Any]:
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["natprec"])


def wait_for(state: Path, segment: int, process: subprocess.Popen[bytes]) -> None:
    """Until the state file says that everything above `segment` is done."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it was killed"
        if state.exists() and header(state)["stage"] <= segment:
            return
        time.sleep(0.005)
    pytest.fail(f"segment {segment} was not reached in time")


def same_bits(one: Path, other: Path) -> bool:
    with safe_open(one, "np") as first, safe_open(other, "np") as second:
        assert set(first.keys()) == set(second.keys())
        return all(
            np.array_equal(first.get_tensor(name).view(np.uint8), second.get_tensor(name).view(np.uint8))
            for name in first.keys()  # noqa: SIM118 - not a dict
        )


@pytest.mark.parametrize("segment", [BLOCKS - 1, BLOCKS // 2, 0], ids=["head done", "half done", "last block left"])
def test_a_killed_measurement_resumes_to_the_same_bits(
    tmp_path: Path, options: list[str], whole: Path, segment: int
) -> None:
    out, state = tmp_path / "m", tmp_path / "m.partial"
    process = subprocess.Popen(command("measure", options, out), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for(state, segment, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert -1 <= header(state)["stage"] <= segment, "some work was left to do"
    (tmp_path / f".natprec-m.partial-{process.pid}-abcdefgh").write_text("half a state, as a kill may leave one")
    resumed = subprocess.run(
        command("measure", options, out, "--resume"), env=ENVIRONMENT, capture_output=True, text=True
    )
    assert resumed.returncode == 0, resumed.stderr
    assert left_behind(tmp_path) == ["m"]
    assert same_bits(whole, out)
    ours, theirs = header(out), header(whole)
    assert ours.pop("seconds").keys() == theirs.pop("seconds").keys()
    assert ours.pop("checksum") != theirs.pop("checksum"), "it covers the seconds"
    assert ours == theirs


def test_other_options_are_not_mixed_in(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "m"
    process = subprocess.Popen(command("measure", options, out), env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    wait_for(tmp_path / "m.partial", BLOCKS - 1, process)
    process.kill()
    process.wait()
    result = natprec("measure", *options, "--out", out, "--resume", "--seed", "1")
    assert result.code == 2
    assert "cannot resume from" in result.reason


def test_ctrl_c_leaves_no_output(tmp_path: Path, options: list[str]) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        command("quantize", [*options, "--eps", "0.001"], out),
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    wait_for(tmp_path / "out.partial" / "sweep.safetensors", BLOCKS - 2, process)  # type: ignore[arg-type]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130, said
    assert "interrupted" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert left_behind(tmp_path) == ["out.partial"], "only what --resume goes on from"
    assert left_behind(tmp_path / "out.partial") == ["sweep.safetensors"]


def test_ctrl_c_while_the_output_is_written(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("natprec.checkpoints.checkpoint.PackedCheckpoint.close", interrupted)
    result = natprec(
        "quantize", "--model", tiny_folder, "--data", text_file, "--eps", "0.001", "--tokens", "128",
        "--eval-tokens", "128", "--sequence-length", "64", "--rounding", "rtn", "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 130
    assert left_behind(tmp_path) == ["out.partial"]
    kept = [name for name in left_behind(tmp_path / "out.partial") if not name.startswith("joint-")]
    assert kept == ["measurement.safetensors"], "and what the plan was looked at for"
