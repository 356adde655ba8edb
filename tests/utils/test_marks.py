"""What natprec did not write, and what it reads, is neither replaced nor removed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from natprec.errors import OutputError
from natprec.utils.atomic_files import new_folder
from natprec.utils.marks import KEY, MARK, discard, is_ours, refuse_inputs
from tests.run_command import SMALL, Result, natprec


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> Path:
    """A measurement of the tiny model."""
    out = tmp_path_factory.mktemp("measured") / "m"
    assert measure(tiny_folder, text_file, out).code == 0
    return out


def measure(model: Path, text: Path, out: Path, *more: str) -> Result:
    return natprec("measure", "--model", model, "--data", text, *SMALL, "--rounding", "rtn", "--out", out, *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def a_thesis(out: Path, plan: str) -> None:
    out.mkdir()
    (out / "plan.json").write_text(plan)
    (out / "thesis.tex").write_text("years of work")


def a_file_more(out: Path, plan: str) -> None:
    with new_folder(out) as folder:
        (folder / "plan.json").write_text(plan)
    (out / "thesis.tex").write_text("years of work")


def changed_since(out: Path, plan: str) -> None:
    with new_folder(out) as folder:
        (folder / "plan.json").write_text(plan)
        (folder / "model.safetensors").write_bytes(b"rounded")
    (out / "model.safetensors").write_bytes(b"rounded, then trained for a week")


def a_file(out: Path, plan: str) -> None:
    out.write_text("years of work")


def a_link_more(out: Path, plan: str) -> None:
    with new_folder(out) as folder:
        (folder / "plan.json").write_text(plan)
    (out.parent / "elsewhere").mkdir()
    (out / "linked").symlink_to(out.parent / "elsewhere")


def somebody_elses_mark(out: Path, plan: str) -> None:
    a_thesis(out, plan)
    (out / MARK).parent.mkdir()
    (out / MARK).write_text("[]")


@pytest.mark.parametrize("make", [a_thesis, a_file_more, changed_since, a_file, a_link_more, somebody_elses_mark])
def test_overwrite_replaces_no_folder_of_another(
    tmp_path: Path, tiny_folder: Path, text_file: Path, measured: Path, make: Callable[[Path, str], None]
) -> None:
    out, plan = tmp_path / "out", tmp_path / "plan.json"
    assert natprec("solve", measured, "--bits", 5, "--out", plan).code == 0
    make(out, plan.read_text())
    before = contents(tmp_path)
    options = ["--model", tiny_folder, "--data", text_file, "--out", out, "--overwrite"]
    for command in (
        ["quantize", *SMALL, "--bits", 5, "--rounding", "rtn", "--eval-tokens", 128],
        ["apply", plan, "--rounding", "rtn"],
        ["inspect", *SMALL],
    ):
        result = natprec(*command, *options)
        assert result.code == 2
        assert "overwrite" in result.err.splitlines()[-1]
        assert contents(tmp_path) == before


def test_overwrite_replaces_what_natprec_wrote(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """Also where a verification was added later."""
    out = tmp_path / "out"
    options = ["--model", tiny_folder, "--data", text_file, *SMALL[:4], "--rounding", "rtn"]
    assert natprec("quantize", *options, *SMALL[4:], "--bits", 5, "--eval-tokens", 128, "--out", out).code == 0
    listed = json.loads((out / MARK).read_text())["files"]
    assert listed == {name: len(content) for name, content in sorted(contents(out).items()) if name != MARK}
    plan = shutil.copy(out / "plan.json", tmp_path / "plan.json")
    again = ["apply", plan, *options, "--out", out, "--overwrite"]
    assert natprec(*again).code == 0
    held = ["--eval-data", text_file, "--eval-tokens", 128, "--sequence-length", 64]
    assert natprec("verify", out, "--model", tiny_folder, *held).code in (0, 3)
    assert natprec(*again).code == 0
    assert not (out / "verification.json").exists()


def test_a_file_that_comes_while_the_output_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_folder(out) as folder:
        (folder / "plan.json").write_text("old")

    def while_somebody_writes() -> None:
        with new_folder(out, overwrite=True) as folder:
            (folder / "plan.json").write_text("new")
            (out / "thesis.tex").write_text("years of work")

    with pytest.raises(OutputError, match=r"thesis\.tex"):
        while_somebody_writes()
    assert (out / "thesis.tex").read_text() == "years of work"


def test_measure_overwrites_measurements_alone(
    tmp_path: Path, tiny_folder: Path, text_file: Path, measured: Path
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    weights = tmp_path / "weights.safetensors"
    shutil.copy(model / "model.safetensors", weights)
    for out in (model / "model.safetensors", model / "new", weights, model, text_file):
        before = contents(tmp_path), text_file.read_bytes()
        result = measure(model, text_file, out, "--overwrite")
        assert result.code == 2
        assert str(out) in result.reason
        assert (contents(tmp_path), text_file.read_bytes()) == before
    shutil.copy(measured, tmp_path / "m")
    assert measure(model, text_file, tmp_path / "m").code == 2
    assert measure(model, text_file, tmp_path / "m", "--overwrite").code == 0


def test_solve_replaces_plans_alone_and_when_asked(tmp_path: Path, measured: Path) -> None:
    out = tmp_path / "plan.json"
    out.write_text('{"years": "of work"}')
    for more in ([], ["--overwrite"]):
        result = natprec("solve", measured, "--bits", 5, "--out", out, *more)
        assert result.code == 2
        assert "overwrite" in result.reason
        assert out.read_text() == '{"years": "of work"}'
    out.unlink()
    assert natprec("solve", measured, "--bits", 5, "--out", out).code == 0
    first = out.read_text()
    assert natprec("solve", measured, "--bits", 6, "--out", out).code == 2
    assert out.read_text() == first
    assert natprec("solve", measured, "--bits", 6, "--out", out, "--overwrite").code == 0
    assert out.read_text() != first
    copy = Path(shutil.copy(measured, tmp_path / "m"))
    assert "(the measurement)" in natprec("solve", copy, "--bits", 5, "--out", copy, "--overwrite").reason


@pytest.mark.parametrize("what", ["the model", "in the model", "around the model", "around the text", "a link to it"])
@pytest.mark.parametrize("command", ["quantize", "apply", "inspect", "compare"])
def test_no_output_where_inputs_are(
    tmp_path: Path, tiny_folder: Path, text_file: Path, measured: Path, what: str, command: str
) -> None:
    model = Path(shutil.copytree(tiny_folder, tmp_path / "models" / "model"))
    text = tmp_path / "texts" / "text.txt"
    text.parent.mkdir()
    shutil.copy(text_file, text)
    (tmp_path / "link").symlink_to(model)
    out = {
        "the model": model, "in the model": model / "new", "around the model": model.parent,
        "around the text": text.parent, "a link to it": tmp_path / "link",
    }[what]  # fmt: skip
    plan = tmp_path / "plan.json"
    assert natprec("solve", measured, "--bits", 5, "--out", plan).code == 0
    before = contents(tmp_path)
    options = ["--model", model, "--data", text, "--out", out]
    arguments: dict[str, list[Any]] = {
        "quantize": [*SMALL, "--bits", 5, "--rounding", "rtn", "--overwrite"],
        "apply": [plan, "--rounding", "rtn", "--overwrite"],
        "inspect": [*SMALL, "--overwrite"],
        "compare": [*SMALL, "--methods", "natprec", "--resume"],
    }
    result = natprec(command, *arguments[command], *options)
    assert result.code == 2
    assert "choose a place outside of it" in result.reason
    assert contents(tmp_path) == before


def test_names_that_only_look_alike_are_no_inputs(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    refuse_inputs(tmp_path / "model-natprec", {"--model": tmp_path / "model", "--data": None})
    with pytest.raises(OutputError, match="lies in the input"):
        refuse_inputs(tmp_path / "a" / ".." / "model" / "out", {"--model": tmp_path / "model"})


def test_progress_of_another_is_not_removed(tmp_path: Path, tiny_folder: Path, text_file: Path, measured: Path) -> None:
    """`OUT.partial`: a file of somebody's, or a folder with files that are called like natprec's."""
    kept = tmp_path / "m.partial"
    shutil.copy(tiny_folder / "model.safetensors", kept)
    result = measure(tiny_folder, text_file, tmp_path / "m")
    assert result.code == 2
    assert "move it away" in result.reason
    assert kept.read_bytes() == (tiny_folder / "model.safetensors").read_bytes()
    for name in ("measurement.safetensors", "segments/mine.safetensors"):
        mine = tmp_path / "out.partial" / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_bytes(b"years of work")
        options = ["--model", tiny_folder, "--data", text_file, *SMALL, "--rounding", "rtn", "--eval-tokens", 128]
        result = natprec("quantize", *options, "--bits", 5, "--out", tmp_path / "out")
        assert result.code == 2
        assert mine.read_bytes() == b"years of work"
        mine.unlink()
    assert is_ours(measured)
    assert not is_ours(tiny_folder / "model.safetensors")
    for metadata in ({"format": "pt", KEY: "a segment"}, {"key": "0f", "stage": "-1", KEY: "hidden states"}):
        (tmp_path / "kept").write_bytes(save({"t": np.zeros(3)}, metadata)[:-1])
        assert is_ours(tmp_path / "kept"), "cut off"
    (tmp_path / "kept").write_bytes(save({"natprec": np.zeros(3)}, {"format": "pt", "by": '"natprec":'}))
    assert not is_ours(tmp_path / "kept")
    copy = Path(shutil.copy(measured, tmp_path / "copy"))
    discard(copy)
    assert not os.path.lexists(copy)


def test_compare_goes_on_in_its_own_folder_alone(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    out = tmp_path / "out"
    (out / "natprec-4").mkdir(parents=True)
    (out / "natprec-4" / "thesis.tex").write_text("years of work")
    shutil.copy(tiny_folder / "model.safetensors", out / "calibration.safetensors")
    options = ["--model", tiny_folder, "--data", text_file, *SMALL, "--methods", "natprec", "--out", out]
    assert natprec("compare", *options, "--resume").code == 2
    assert (out / "natprec-4" / "thesis.tex").read_text() == "years of work"
