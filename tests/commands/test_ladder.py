"""`--ladder`: of solve, what tolerances would cost; of quantize, a checkpoint for each size from one measurement."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natprec.pipeline import resume as resumable
from natprec.solver import Plan
from tests.run_command import SMALL, left_behind, natprec


def test_a_checkpoint_for_each_size_from_one_measurement(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, measured = tmp_path / "out", list[int]()
    honest = resumable.measure
    monkeypatch.setattr(resumable, "measure", lambda *a, **o: (measured.append(1), honest(*a, **o))[1])
    options = ("--data", text_file, *SMALL, "--eval-tokens", 512, "--rounding", "rtn", "--out", out)
    result = natprec("quantize", "--model", tiny_folder, "--ladder", "4,5.5,7", *options, "--json")
    assert result.code == 0, result.err
    assert measured == [1]
    assert left_behind(tmp_path) == ["out"]
    assert {"4bpw", "5.5bpw", "7bpw", "ladder.json"} <= set(left_behind(out))
    rungs = json.loads((out / "ladder.json").read_text())["rungs"]
    assert json.loads(result.out)["rungs"] == rungs
    for rung, width in zip(rungs, (4, 5.5, 7), strict=True):
        assert Plan.load(out / rung["name"] / "plan.json").bits_per_weight == rung["bits"] <= width
        assert json.loads((out / rung["name"] / "verification.json").read_text())["kl_mean"] == rung["kl_mean"]
    assert rungs[0]["kl_mean"] > rungs[1]["kl_mean"] > rungs[2]["kl_mean"]
    assert rungs[0]["stored_bytes"] < rungs[1]["stored_bytes"] < rungs[2]["stored_bytes"]
    result = natprec("verify", out / "4bpw", "--model", tiny_folder, "--eval-data", text_file, "--json")
    assert json.loads(result.out)["kl_mean"] == pytest.approx(rungs[0]["kl_mean"]), "a checkpoint like any other"
    result = natprec("solve", out / "4bpw" / "natprec" / "measurement.safetensors", "--ladder", "--json")
    assert result.code == 0, result.err
    assert {"eps", "bits", "stored_bytes", "kl_predicted"} <= json.loads(result.out)["rungs"][0].keys()
    beside = json.loads(result.out)["measured"]
    assert [each["name"] for each in beside] == ["4bpw", "5.5bpw", "7bpw"]
    for each, rung in zip(beside, rungs, strict=True):
        assert (each["kl_mean"], each["top1_agreement"]) == (pytest.approx(rung["kl_mean"]), rung["top1_agreement"])
        assert each["flips"] is None
    tasks = [{"n": 10, "flips_to_wrong": 2, "flips_to_right": 1}, {"n": 5, "flips_to_wrong": None}]
    (out / "7bpw" / "eval.json").write_text(json.dumps({"tasks": tasks}))
    result = natprec("solve", out / "4bpw" / "natprec" / "measurement.safetensors", "--ladder", "--json")
    assert [each["flips"] for each in json.loads(result.out)["measured"]] == [None, None, 0.3]
    monkeypatch.setenv("COLUMNS", "80")
    result = natprec("solve", out / "4bpw" / "natprec" / "measurement.safetensors", "--ladder")
    assert result.code == 0
    assert all(len(line) <= 80 for line in result.out.splitlines())
    assert "30.00%" in result.out
    result = natprec("quantize", "--model", tiny_folder, "--ladder", "4.5", *options)
    assert result.code == 2, "an output that exists is not replaced"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--ladder", "3,4,x"), "bits per weight with commas"),
        (("--ladder", "4,4"), "each once"),
        (("--ladder", "4,-1"), "bits per weight"),
        (("--ladder", "4,5", "--eps", 0.1), "leave out --eps"),
    ],
)
def test_ladders_that_are_none(options: tuple[object, ...], said: str, tmp_path: Path, tiny_folder: Path) -> None:
    result = natprec("quantize", "--model", tiny_folder, *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert said in result.err
    assert left_behind(tmp_path) == []
