"""The whole flow on a tiny model: peers that are told what to do, and natprec itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from natprec.comparison import bench
from natprec.comparison.methods import METHODS, Method
from tests.comparison.test_processes import fake
from tests.run_command import SMALL, Result, left_behind, natprec

NAMES = {"method", "status", "kl_mean", "kl_p99", "perplexity", "top1_agreement", "stored_bytes", "bits_per_weight",
         "seconds", "peak_bytes"}  # fmt: skip
FAKES = {
    "gptq": fake("round"),
    "rtn": fake("nan"),
    "awq": fake("round", module="no_such_module_here"),
    "nf4": Method(str(fake("").file.with_suffix("")), "json", "p", {"do": "round"}, bits=6),
}


def run(folder: Path, model: Path, text: Path, *more: str) -> Result:
    return natprec(
        "compare", "--model", model, "--data", text, "--eval-tokens", "512", *SMALL,
        "--methods", "natprec,rtn,gptq,awq,nf4", "--bits", "4,3", "--out", folder, "--json", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> Any:
    """The folder of a run, its JSON and the JSON of the resumed run with the methods that this one started."""
    folder = tmp_path_factory.mktemp("compared") / "out"
    started: list[str] = []
    plain = bench.run_job

    def counted(job: Any, *arguments: Any) -> Any:
        started.append(f"{job.method}-{job.bits}")
        return plain(job, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name, method in FAKES.items():
            patch.setitem(METHODS, name, method)
        first = run(folder, tiny_folder, text_file)
        assert first.code == 0, first.err
        patch.setattr(bench, "run_job", counted)
        again = run(folder, tiny_folder, text_file, "--resume")
        other = run(folder, tiny_folder, text_file, "--resume", "--seed", "1", "--methods", "nf4")
    return folder, json.loads(first.out), json.loads(again.out), started, other


def rows(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {f"{row['method']}-{row['bits']}": row for row in report["rows"]}


def test_every_method_has_its_rows(done: Any) -> None:
    report = done[1]
    assert all(row.keys() >= NAMES for row in report["rows"])
    assert list(rows(report)) == [
        *("rtn-4", "gptq-4", "awq-4", "nf4-6", "natprec-4"),
        *("rtn-3", "gptq-3", "awq-3", "natprec-3"),  # nf4 has one width and one row
    ]


def test_failures_are_rows_with_a_reason_and_no_figures(done: Any) -> None:
    report = rows(done[1])
    assert "NaN or Inf" in report["rtn-4"]["status"]
    assert report["awq-3"]["status"].startswith("not installed: ")
    for name in ("rtn-4", "awq-3"):
        assert {report[name][key] for key in NAMES - {"method", "status", "seconds", "peak_bytes"}} == {None}


def test_figures_of_the_others(done: Any) -> None:
    report = rows(done[1])
    for name in ("gptq-4", "gptq-3", "nf4-6", "natprec-4", "natprec-3"):
        row = report[name]
        assert row["status"] == "ok"
        assert 0 < row["kl_mean"] < row["kl_p99"] < 1
        assert 0 < row["layer_mse"] < 1
    assert report["nf4-6"]["kl_mean"] < report["gptq-4"]["kl_mean"] < report["gptq-3"]["kl_mean"]


def test_natprec_has_at_most_the_bytes_of_the_uniform_checkpoint(done: Any) -> None:
    report = rows(done[1])
    for bits in ("4", "3"):
        target = report[f"gptq-{bits}"]["stored_bytes"]
        assert done[1]["target_bytes"][bits] == target
        assert report[f"natprec-{bits}"]["stored_bytes"] <= target


def test_natprec_plans_all_that_vllms_code_loads(done: Any) -> None:
    """The report names the GPU, and the plan what no run has been seen to load."""
    folder, report = done[0], done[1]
    plan = json.loads((folder / "natprec-4" / "checkpoint" / "plan.json").read_text())
    assert plan["gpu"] == report["gpu"] == "any"
    assert plan["needs"]["untested"]


def test_the_proxies_are_compared_with_the_kl(done: Any) -> None:
    found = done[1]["proxies"]["layer_mse"]
    assert found["rows"] == 5
    assert -1 <= found["ci95"][0] <= found["spearman"] <= found["ci95"][1] <= 1


def test_resume_runs_only_what_failed(done: Any) -> None:
    _, first, again, started, _ = done
    assert [name for name in started if not name.startswith("nf4")] == ["rtn-4", "awq-4", "rtn-3", "awq-3"]
    assert rows(again)["natprec-4"] == rows(first)["natprec-4"]


def test_other_inputs_are_not_resumed(done: Any) -> None:
    """The seed of the intervals is one."""
    assert done[3].count("nf4-6") == 1


def test_what_stays_on_disk(done: Any) -> None:
    folder = done[0]
    names = left_behind(folder)
    assert {"reference", "calibration.safetensors", "compare.json", "gptq-4", "natprec-3"} <= set(names)
    assert left_behind(folder / "gptq-4") == ["checkpoint", "job.json", "log.txt", "result.json", "row.json"]
    assert not list(folder.rglob("dense.safetensors"))


def test_with_rounded_activations(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "gptq", FAKES["gptq"])
        result = run(
            tmp_path / "out", tiny_folder, text_file, "--activations", "8", "--methods", "gptq,natprec", "--bits", "4"
        )
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert report["activations"] == 8
    assert report["gpu"] is None, "no format of 'any' is multiplied with integers"
    assert [row["status"] for row in report["rows"]] == ["ok", "ok"]
    plan = json.loads((tmp_path / "out" / "natprec-4" / "checkpoint" / "plan.json").read_text())
    assert {choice["bits"] for choice in plan["inputs"].values()} == {8}


def test_seeds_and_more_text(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """Each of natprec's rows comes twice; what is given more of the text has windows that no other file has."""
    method = METHODS["natprec-linear-text"]
    quick = replace(method, settings={**method.settings, "rounding": "rtn", "learn_tokens": 64})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "gptq", FAKES["gptq"])
        patch.setitem(METHODS, "natprec-linear-text", quick)
        result = run(
            tmp_path / "out", tiny_folder, text_file, "--seeds", "2", "--bits", "4",
            "--methods", "gptq,natprec,natprec-linear-text",
        )  # fmt: skip
    assert result.code == 0, result.err
    report = json.loads(result.out)
    found = [(row["method"], row["seed"], row["status"]) for row in report["rows"]]
    assert found == [
        ("gptq", 0, "ok"), ("natprec", 0, "ok"), ("natprec", 1, "ok"),
        ("natprec-linear-text", 0, "ok"), ("natprec-linear-text", 1, "ok"),
    ]  # fmt: skip
    assert [(each["method"], each["peer"], each["seeds"]) for each in report["ratios"]] == [
        ("natprec", "gptq", 2), ("natprec-linear-text", "gptq", 2),
    ]  # fmt: skip
    assert report["more_tokens"] > 0
    files = [
        load_file(tmp_path / "out" / name)["input_ids"] for name in ("calibration.safetensors", "text.safetensors")
    ]
    first, more = ({tuple(window) for window in each.tolist()} for each in files)
    assert not first & more
    assert files[1].numel() == report["more_tokens"]
    counts = {len(row["kl_samples"]) * files[0].shape[1] for row in report["rows"]}
    assert counts == {report["eval_tokens"]}


def test_results_are_not_written_over(done: Any, tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for folder, more, words in (
        (done[0], (), "is not empty; add --resume"),
        (tmp_path, ("--resume",), "is not empty; choose another"),
        (tmp_path / "notes.txt", (), "is a file"),
    ):
        result = natprec("compare", "--model", tiny_folder, "--out", folder, *more)
        assert result.code == 2
        assert words in result.reason


def test_wrong_options_are_refused_before_anything_is_loaded(tiny_folder: Path) -> None:
    for options, words in (
        (("--methods", "gtpq"), "did you mean 'gptq'"),
        (("--bits", "12"), "2 to 8"),
        (("--activations", "5"), "16, 8 or 4 bits"),
        (("--seeds", "0"), "at least once"),
        (("--iterations", "-1"), "iterations -1: AutoRound takes at least one"),
        (("--time-limit", "nan"), "time-limit nan: give the seconds"),
        (("--time-limit", "-5"), "time-limit -5: give the seconds"),
        (("--group-size", "auto"), "fixed size"),
        (("--python", "/nowhere"), "is no file"),
    ):
        result = natprec("compare", "--model", tiny_folder, *options)
        assert result.code == 2
        assert words in result.reason
