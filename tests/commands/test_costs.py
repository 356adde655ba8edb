"""`natprec costs`, and `--minimize` of solve and quantize: the table that one makes is what the other asks for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from natprec.costs.roofline import WORD
from natprec.costs.table import CostTable
from natprec.costs.write import TIMES, save
from natprec.formats import parse_format
from natprec.solver import Plan
from tests.run_command import SMALL, left_behind, natprec


@pytest.fixture(scope="module")
def measured(tiny_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the tiny model, for natprec's runtime."""
    out = tmp_path_factory.mktemp("measured") / "tiny.measurement"
    options = ("--engine", "natprec", "--data", text_file, *SMALL, "--rounding", "rtn", "--out", out)
    result = natprec("measure", "--model", tiny_folder, *options)
    assert result.code == 0, result.err
    return out


@pytest.fixture(scope="module")
def costs(measured: Path) -> Path:
    out = measured.with_name("costs.toml")
    result = natprec("costs", "--engine", "natprec", "--measurement", measured, "--repeat", 2, "--out", out)
    assert result.code == 0, result.err
    assert result.out.endswith(f"costs written to {out}\n")
    return out


def test_the_table_of_a_measurement_solves_it(measured: Path, costs: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    result = natprec("solve", measured, "--eps", 0.5, "--minimize", "decode", "--costs", costs, "--out", out, "--json")
    assert result.code == 0, result.err
    said, table = json.loads(result.out), CostTable.load(costs)
    assert (said["cost_unit"], said["cost_source"], said["cost_digest"]) == ("microseconds", "measured", table.digest)
    plan = Plan.load(out)
    assert plan.cost == said["cost"]
    assert plan.provenance is not None
    assert "--costs costs.toml" in plan.provenance.command
    assert str(tmp_path.parent) not in plan.provenance.command
    result = natprec("solve", measured, "--eps", 0.5, "--minimize", "decode", "--costs", costs)
    assert "least decode" in result.out
    assert table.digest in result.out
    assert WORD not in result.out
    smallest = json.loads(natprec("solve", measured, "--eps", 0.5, "--json").out)
    assert (smallest["cost"], smallest["cost_unit"], smallest["cost_source"]) == (
        smallest["stored_bytes"], "bytes", "counted",
    )  # fmt: skip


def test_a_ladder_lists_distortion_bytes_and_microseconds(
    measured: Path, costs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = natprec("solve", measured, "--ladder", "--minimize", "decode", "--costs", costs)
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert {"KL", "stored", "microseconds"} <= set(lines[0].split())
    found = json.loads(natprec("solve", measured, "--ladder", "--minimize", "decode", "--costs", costs, "--json").out)
    assert (found["minimize"], found["cost_unit"], found["cost_source"]) == ("decode", "microseconds", "measured")
    assert sum(rung["dominated"] for rung in found["rungs"]) == sum(line.endswith("dominated") for line in lines)


def test_every_line_of_a_roofline_says_so(measured: Path) -> None:
    ways = (("--eps", 0.5), ("--ladder",))
    for way in ways:
        options = ("--engine", "vllm", "--gpu", "h100", "--untested", "--minimize", "prefill")
        result = natprec("solve", measured, *way, *options)
        assert result.code == 0, result.err
        assert len(result.out.splitlines()) > 3
        assert all(line.startswith(WORD) for line in result.out.splitlines())
        said = json.loads(natprec("solve", measured, *way, *options, "--json").out)
        assert said["cost_source"] == "roofline"


def test_quantize_minimizes_too(
    tiny_folder: Path, text_file: Path, measured: Path, costs: Path, tmp_path: Path
) -> None:
    common = ("--engine", "natprec", "--data", text_file, *SMALL, "--eval-tokens", 512, "--rounding", "rtn")
    result = natprec(
        "quantize", "--model", tiny_folder, *common, "--eps", 0.5, "--minimize", "decode", "--costs", costs,
        "--out", tmp_path / "out", "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    plan, said = Plan.load(tmp_path / "out" / "plan.json"), json.loads(result.out)
    assert {name: said[name] for name in plan.cost_to_json()} == plan.cost_to_json()
    assert (said["cost_unit"], said["cost_source"]) == ("microseconds", "measured")
    assert (plan.minimize, plan.cost_digest) == ("decode", CostTable.load(costs).digest)
    bad = tmp_path / "bad.toml"
    bad.write_text(costs.read_text().replace("int5-g32", "int5-g128"))
    result = natprec(
        "quantize", "--model", tiny_folder, *common, "--eps", 0.5, "--minimize", "decode", "--costs", bad,
        "--out", tmp_path / "no",
    )  # fmt: skip
    assert result.code == 2
    assert "lacks int5-g32" in result.err
    assert "measure …" not in result.err, "before anything is measured"
    assert left_behind(tmp_path) == ["bad.toml", "out"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--minimize", "joules"), "minimize 'joules' needs a measured table"),
        (("--minimize", "decode"), "there is no table of costs of engine 'natprec' here"),
        (("--minimize", "decode", "--engine", "transformers", "--gpu", "h100"), "has no kernels whose costs"),
        (("--minimize", "speed"), "unknown minimize 'speed'"),
        (("--minimize", "decode", "--costs", "absent.toml"), "'absent.toml' cannot be read"),
        (("--minimize", "decode", "--bits", 4), "a size says already"),
    ],
)
def test_what_cannot_be_minimized_is_refused(measured: Path, options: tuple[object, ...], said: str) -> None:
    result = natprec("solve", measured, "--eps", 0.5, *options)
    assert result.code == 2
    assert said in result.reason


def test_what_would_be_timed_and_what_cannot(measured: Path, tmp_path: Path) -> None:
    result = natprec("costs", "--engine", "natprec", "--measurement", measured, "--dry-run", "--json")
    assert result.code == 0, result.err
    assert {row["formats"] for row in json.loads(result.out)["products"]} >= {"int4-g32", "int8-g32", "16 bits"}
    (tmp_path / "mine.toml").write_text("mine = true")
    for options, said in (
        (("--engine", "sglang", "--out", tmp_path / "a.toml"), "unknown engine 'sglang'"),
        (("--engine", "natprec"), "say where with --out FILE.toml"),
        (("--engine", "natprec", "--out", tmp_path / "mine.toml", "--overwrite"), "is no table of costs of natprec's"),
        (("--engine", "natprec", "--tokens", "0", "--out", tmp_path / "a.toml"), "tokens '0': give whole numbers"),
        (("--engine", "natprec", "--measurement", measured, "--shapes", "8x8", "--out", tmp_path / "a.toml"),
         "leave --formats and --shapes out"),
    ):  # fmt: skip
        result = natprec("costs", *options)
        assert result.code == 2
        assert said in result.reason
    assert left_behind(tmp_path) == ["mine.toml"]


def test_the_rest_of_a_model_is_in_the_cost(tiny_folder: Path, text_file: Path, measured: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    assert natprec("solve", measured, "--eps", 0.5, "--out", plan).code == 0
    assert natprec("apply", plan, "--model", tiny_folder, "--out", tmp_path / "made").code == 0
    out = tmp_path / "whole.toml"
    result = natprec(
        "costs", "--engine", "natprec", "--measurement", measured, "--whole", tmp_path / "made", "--repeat", 2,
        "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    table, digest = CostTable.load(out), Plan.load(plan).model_digest
    rest = table.rest(digest, 1)
    assert rest is not None
    said = json.loads(natprec("solve", measured, "--eps", 0.5, "--minimize", "decode", "--costs", out, "--json").out)
    assert said["cost_whole"] is True
    assert table.rest("another", 1) is None


def test_a_table_that_lacks_a_format_or_is_of_another_engine(measured: Path, tmp_path: Path) -> None:
    row = {"weight": "int4-g32", "rows": 64, "columns": 64, "tokens": 1, "microseconds": 1.0}
    heading = {"source": "measured", "unit": "microseconds"}
    save({**heading, "engine": "natprec", "rows": [row]}, tmp_path / "few.toml", TIMES)
    save({**heading, "engine": "vllm", "gpu": "NVIDIA L4", "rows": [row]}, tmp_path / "other.toml", TIMES)
    result = natprec("solve", measured, "--eps", 0.5, "--minimize", "decode", "--costs", tmp_path / "few.toml")
    assert result.code == 2
    assert "lacks" in result.reason
    assert "it has int4-g32" in result.reason
    result = natprec("solve", measured, "--eps", 0.5, "--minimize", "decode", "--costs", tmp_path / "other.toml")
    assert "is of engine 'vllm' on NVIDIA L4, and the plan is for engine 'natprec'" in result.reason


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_bitsandbytes_is_asked_for_before_anything_is_measured(
    tiny_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = natprec(
        "quantize", "--model", tiny_folder, "--engine", "bitsandbytes", "--eps", 0.5, "--data", text_file,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 2
    assert "bitsandbytes is not installed; run: pip install 'natprec[bitsandbytes]'" in result.reason


def test_a_block_size_that_does_not_divide(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    result = natprec(
        "measure", "--model", tiny_folder, "--engine", "bitsandbytes", "--data", text_file, "--tokens", 512,
        "--sequence-length", 64, "--group-size", 256, "--out", tmp_path / "m",
    )  # fmt: skip
    assert result.code == 2
    assert "group size 256" in result.reason
    assert parse_format("nf4-g4096").group_size == 4096
