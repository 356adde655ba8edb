"""A symbolic link, or somebody's file, under a name that natprec derives from an output: nothing of it is touched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from natprec.errors import OutputError
from natprec.utils.atomic_files import clear_stale, new_folder
from natprec.utils.claims import beside, claimed
from tests.run_command import SMALL, left_behind, natprec
from tests.test_pipeline import dead_process


def test_a_lock_that_is_a_link(tmp_path: Path) -> None:
    target = tmp_path / "thesis.tex"
    target.write_text("years of work")
    (tmp_path / ".natprec-out.lock").symlink_to(target)
    with pytest.raises(OutputError, match="symbolic link"), claimed(tmp_path / "out"):
        pass
    assert target.read_text() == "years of work"
    assert left_behind(tmp_path) == [".natprec-out.lock", "thesis.tex"]


def test_a_lock_that_leads_nowhere_makes_no_file(tmp_path: Path) -> None:
    (tmp_path / ".natprec-out.lock").symlink_to(tmp_path / "made")
    with pytest.raises(OutputError, match="symbolic link"), claimed(tmp_path / "out"):
        pass
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"years of work", b"process of a king", b"\xff\xfe"])
def test_a_lock_that_is_somebodys_file(tmp_path: Path, content: bytes) -> None:
    """Under this name alone, or under two (a hard link)."""
    mine = tmp_path / "thesis.tex"
    mine.write_bytes(content)
    lock = tmp_path / ".natprec-out.lock"
    os.link(mine, lock)
    with pytest.raises(OutputError, match="move it away"), claimed(tmp_path / "out"):
        pass
    assert mine.read_bytes() == content
    assert lock.exists()


@pytest.mark.parametrize("name", ["out.partial", "out.partial/segments", "out.partial/measurement.safetensors"])
def test_progress_that_is_a_link(tmp_path: Path, tiny_folder: Path, text_file: Path, name: str) -> None:
    target = tmp_path / "elsewhere"
    (target / "segments").mkdir(parents=True)
    for file in ("measurement.safetensors", "segment-00000.safetensors", "segments/segment-00000.safetensors"):
        (target / file).write_text("years of work")
    link = tmp_path / name
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(target if "measurement" not in name else target / "measurement.safetensors")
    before = sorted((str(file), file.read_bytes()) for file in target.rglob("*") if file.is_file())
    options = ["--model", tiny_folder, "--data", text_file, *SMALL, "--rounding", "rtn", "--eval-tokens", 128]
    for more in ([], ["--resume"]):
        result = natprec("quantize", *options, "--bits", 5, "--out", tmp_path / "out", *more)
        assert result.code == 2
        assert "symbolic link" in result.reason
    assert sorted((str(file), file.read_bytes()) for file in target.rglob("*") if file.is_file()) == before
    with pytest.raises(OutputError, match="symbolic link"):
        beside(tmp_path / "out", ".partial")


def test_what_a_killed_run_left_is_no_link(tmp_path: Path) -> None:
    """A link that is called so is not taken for an output moved aside, and nothing is moved out of its target."""
    target = tmp_path / "elsewhere"
    (target / "out").mkdir(parents=True)
    (target / "out" / "thesis.tex").write_text("years of work")
    link = tmp_path / f".natprec-out-{dead_process()}-old-abc12345"
    link.symlink_to(target)
    clear_stale(tmp_path / "out")
    assert left_behind(tmp_path) == sorted([link.name, "elsewhere"])
    assert (target / "out" / "thesis.tex").exists()


def test_an_output_that_is_a_link_to_an_output(tmp_path: Path) -> None:
    """The link is replaced; what it points to stays."""
    with new_folder(tmp_path / "first") as folder:
        (folder / "plan.json").write_text("first")
    (tmp_path / "out").symlink_to(tmp_path / "first")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "plan.json").write_text("second")
    assert (tmp_path / "first" / "plan.json").read_text() == "first"
    assert (tmp_path / "out" / "plan.json").read_text() == "second"
