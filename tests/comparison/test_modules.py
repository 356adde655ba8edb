"""Comparing a part of a pipeline: peers that are told what to do, GGUF's own code, and natprec at their bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")

from natprec.comparison import modules
from natprec.comparison.methods import MODULES, Method
from tests.pipelines import MAKERS
from tests.run_command import Result, left_behind, natprec

FAKE = Path(__file__).with_name("fake_module_peer.py").with_suffix("")
FAKES = {
    "sdnq": Method(str(FAKE), "json", "p", {"do": "round"}),
    "nf4": Method(str(FAKE), "json", "p", {"do": "coarse"}, bits=4),
    "torchao": Method(str(FAKE), "no_such_module_here", "p"),
}


def run(folder: Path, pipeline: Path, *more: str) -> Result:
    return natprec(
        "compare", "--model", pipeline, "--component", "transformer", "--steps", "4", "--tokens", "256",
        "--eval-tokens", "512", "--group-size", "16", "--methods", ",".join([*FAKES, "gguf", "natprec"]),
        "--bits", "4,3", "--out", folder, "--json", *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run, its JSON, that of the resumed run, and what this one started and rounded."""
    folder = tmp_path_factory.mktemp("compared")
    pipeline, out = MAKERS["dit"](folder / "dit"), folder / "out"
    started: list[str] = []
    plain, write = modules.run_job, modules.round_and_write

    def counted(job: Any, *arguments: Any) -> Any:
        started.append(f"{job.method}-{job.bits}")
        return plain(job, *arguments)

    def rounded(*arguments: Any) -> None:
        started.append("natprec")
        write(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        for name, method in FAKES.items():
            patch.setitem(MODULES, name, method)
        patch.setattr(modules, "round_and_write", rounded)
        first = run(out, pipeline)
        assert first.code == 0, first.err
        twice = started.count("natprec")
        patch.setattr(modules, "run_job", counted)
        started.clear()
        again = run(out, pipeline, "--resume")
    assert left_behind(folder) == ["dit", "out"]
    return out, json.loads(first.out), json.loads(again.out), started, twice


def named(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["beside"] or f"{row['method']} {row['bits']}": row for row in report["rows"] if not row["beside"]}


def test_natprec_follows_each_that_succeeded_with_no_more_bytes(done: Any) -> None:
    rows = done[1]["rows"]
    theirs = [row for row in rows if row["method"] != "natprec"]
    ours = {row["beside"]: row for row in rows if row["method"] == "natprec"}
    good = [row for row in theirs if row["status"] == "ok"]
    assert [f"{row['method']} {row['bits']}" for row in good] == ["sdnq 4", "nf4 4", "gguf 4", "sdnq 3"]
    assert list(ours) == [f"{row['method']} {row['bits']}" for row in good]
    for row in good:
        own = ours[f"{row['method']} {row['bits']}"]
        assert own["status"] == "ok"
        assert own["stored_bytes"] <= row["stored_bytes"]
        assert own["stored_bits"] <= row["stored_bits"]
        assert own["kl_mean"] > 0
        assert own["image_error"] > 0 < row["image_error"]
        checkpoint = done[0] / f"natprec-{row['stored_bytes']}" / "checkpoint"
        assert (checkpoint / "transformer").is_dir()


def test_the_same_bytes_are_rounded_once(done: Any) -> None:
    sizes = {row["stored_bytes"] for row in done[1]["rows"] if row["method"] != "natprec" and row["status"] == "ok"}
    assert done[4] == len(sizes) == 3, "two have four bits and a scale for each row"


def test_more_bits_cost_less_and_the_ratio_is_of_the_neighbours(done: Any) -> None:
    rows = named(done[1])
    assert rows["sdnq 4"]["kl_mean"] < rows["sdnq 3"]["kl_mean"]
    assert rows["sdnq 4"]["kl_mean"] < rows["nf4 4"]["kl_mean"]
    ours = [row for row in done[1]["rows"] if row["method"] == "natprec"]
    for found, row in zip(done[1]["ratios"], ours, strict=True):
        beside = rows[f"{found['peer']} {found['bits']}"]
        assert found["ratio"] == pytest.approx(row["kl_mean"] / beside["kl_mean"])
        assert found["ci95"][0] < found["ratio"] < found["ci95"][1]


def test_failures_are_rows_with_a_reason(done: Any) -> None:
    rows = named(done[1])
    assert "no_such_module_here" in rows["torchao 4"]["status"]
    assert "4, 5 and 8" in rows["gguf 3"]["status"]
    assert {rows["gguf 3"][key] for key in ("kl_mean", "stored_bytes", "image_error")} == {None}


def test_resume_runs_what_failed_and_measures_nothing_again(done: Any) -> None:
    assert [name for name in done[3] if name != "natprec"] == ["torchao-4", "torchao-3", "gguf-3"]
    assert "natprec" not in done[3]
    first, again = ([row for row in report["rows"] if row["status"] == "ok"] for report in done[1:3])
    assert first == again


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (("--methods", "gptq"), "unknown method 'gptq'"),
        (("--activations", "8"), "are for models of text; leave them out"),
        (("--seeds", "2"), "are for models of text; leave them out"),
        (("--component", "transfomer"), "did you mean 'transformer'?"),
    ],
)
def test_what_is_for_models_of_text_is_refused(option: tuple[str, str], said: str, tmp_path: Path) -> None:
    result = run(tmp_path / "out", MAKERS["dit"](tmp_path / "dit"), *option)
    assert result.code == 2
    assert said in result.err
    assert not (tmp_path / "out").exists()


def test_a_model_of_text_is_not_given_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    result = natprec("compare", "--model", tiny_folder, "--data", tmp_path / "images", "--out", tmp_path / "out")
    assert result.code == 2
    assert "is a folder; name one file in it" in result.err
