"""The script of the main job, on a CPU with tiny shapes: all of its stages, its limits, and what does not fit."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from scripts import gpu_main_job, gpu_shapes
from scripts.gpu_main_job import LIMITS, parse_run, stages_of, table
from scripts.gpu_shapes import Shape, fitting, whole
from scripts.gpu_stages import STAGES

SMALL = ["--device", "cpu", "--tokens", "256", "--length", "64", "--group-size", "32"]


def job(*arguments: str) -> int:
    """With time for a machine that does other work as well."""
    with (
        mock.patch.object(sys, "argv", ["gpu_main_job", *SMALL, "--minutes", "30", *arguments]),
        mock.patch.dict(LIMITS, dict.fromkeys(LIMITS, 600.0)),
    ):
        return gpu_main_job.main()


def test_all_stages_of_a_dense_model_and_of_experts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Learned rounding takes as long as all others together, and is left to the machine with a GPU."""
    said = tmp_path / "job.json"
    stages = [name for name in STAGES if name != "learned"]
    runs = ["tiny:gpu", "tiny-experts:disk:1"]
    assert job("--runs", *runs, "--stages", *stages, "--scratch", str(tmp_path), "--json", str(said)) == 0
    found = json.loads(said.read_text())
    dense, experts = found["runs"]
    assert [(run["shape"], run["place"], run["layers"]) for run in found["runs"]] == [
        ("tiny", "gpu", 2), ("tiny-experts", "disk", 1),
    ]  # fmt: skip
    for run in (dense, experts):
        assert [stage["stage"] for stage in run["stages"]] == ["make", "open", *stages]
    assert {stage["status"] for stage in dense["stages"]} == {"done"}
    statuses = {stage["stage"]: stage["status"] for stage in experts["stages"]}
    assert {name for name, status in statuses.items() if status.startswith("not run")} == {"plain", "bf16"}
    by_name = {stage["stage"]: stage for stage in dense["stages"]}
    assert by_name["measure"]["peak_host_bytes"] > 1e6
    assert by_name["generate"]["decode_tokens_per_second"] > 0
    assert by_name["measure"]["sites"] == 16
    printed = capsys.readouterr().out
    assert "| tiny gpu, 2 of 2 layers | measure |" in printed
    assert "not run: weights are not on the device" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["job.json"]


def test_a_stage_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "measure", 0.5)
    lines = [{"stage": "open", "status": "done", "seconds": 1.0}, {"stage": "measure", "status": "begins"}]
    program = (
        f"import time\nfor line in {[json.dumps(each) for each in lines]}: print(line, flush=True)\ntime.sleep(60)"
    )
    begun = time.monotonic()
    found = stages_of([sys.executable, "-c", program], begun + 100)
    assert [stage["status"] for stage in found] == ["done", "stopped after 0 s"]
    assert time.monotonic() - begun < 30


def test_a_process_that_dies_says_why() -> None:
    found = stages_of([sys.executable, "-c", "raise SystemExit('no such thing')"], time.monotonic() + 60)
    assert found == [{"stage": "open", "status": "failed: no such thing"}]


def test_the_whole_ends_in_time(tmp_path: Path) -> None:
    result = gpu_main_job.run("tiny", "gpu", None, time.monotonic() - 1, argparse.Namespace())
    assert (result["layers"], result["why"]) == (0, "no time was left")
    assert "| all | not run |" in table([result])


@pytest.mark.parametrize(("free", "layers"), [(1e12, 32), (24e9, 19), (2e9, 0)])
def test_layers_are_cut_until_the_disk_holds_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, layers: int
) -> None:
    monkeypatch.setattr(gpu_shapes.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr(gpu_shapes, "available_bytes", lambda: 1e12)
    shape, why = fitting("llama-3.1-8b", "disk", "cpu", tmp_path)
    assert (0 if shape is None else shape.layers) == layers
    assert why.startswith("disk") == (layers < 32)


def test_real_shapes_have_their_weights() -> None:
    assert whole("llama-3.1-8b").weights == 8_030_261_248
    assert whole("qwen3-30b-a3b").weights == 30_532_122_624
    assert Shape("llama-3.1-8b", 1).weights < 2e9


def test_what_is_no_run() -> None:
    assert parse_run("tiny:disk:3") == ("tiny", "disk", 3)
    for text in ("tiny", "tiny:moon", "huge:gpu", "tiny:gpu:0"):
        with pytest.raises(argparse.ArgumentTypeError, match="give SHAPE:PLACE"):
            parse_run(text)


def test_profiles_name_operations(tmp_path: Path, capsys: pytest.CaptureFixture[Any]) -> None:
    said = tmp_path / "job.json"
    assert (
        job("--runs", "tiny:gpu:1", "--stages", "plain", "--profile", "--scratch", str(tmp_path), "--json", str(said))
        == 0
    )
    stage = json.loads(said.read_text())["runs"][0]["stages"][-1]
    assert 1 <= len(stage["top"]) <= 10
    assert any(row["name"].startswith("aten::") for row in stage["top"])
    assert "tiny gpu plain: " in capsys.readouterr().out
