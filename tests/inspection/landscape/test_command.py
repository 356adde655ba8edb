"""`natprec landscape`: what it prints and writes, and what it refuses before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from natprec.inspection.landscape import known
from tests.inspection.landscape.networks import tiny_unet
from tests.run_command import left_behind, natprec


def test_one_object_and_nothing_else(tmp_path: Path) -> None:
    sentence = "Not measured: TAEF2."
    with mock.patch.object(known, "networks", return_value=([tiny_unet()], [sentence])):
        result = natprec("landscape", "--json", "--repeats", 2, "--seed", 5, "--out", tmp_path / "out")
        assert result.code == 0
        value = json.loads(result.out)
        assert value["seeds"] == [5, 6]
        assert value["missing"] == [sentence]
        assert {"place", "claim_bits", "weights", "activations", "verdict"} <= value["rows"][0].keys()
        assert json.loads((tmp_path / "out" / "landscape.json").read_text()) == value
        again = natprec("landscape", "--out", tmp_path / "out")
    assert again.code == 2
    assert "--overwrite" in again.reason
    assert "landscape.json" in left_behind(tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--taef2", "none"], "--taef2 'none' does not exist; give a folder"),
        (["--dit", "none"], "--dit 'none' does not exist; give a file"),
        (["--unet", "."], "--unet '.' is not a file"),
        (["--repeats", "0"], "--repeats"),
        (["--data", "none"], "images 'none' does not exist; give a folder of pictures"),
    ],
)
def test_what_cannot_work_is_refused(given: list[str], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "taef2"
    folder.mkdir()
    if given[0] == "--data":
        from tests.inspection.landscape.networks import coders

        with mock.patch("natprec.inspection.landscape.taef2.read", return_value=coders()):
            result = natprec("landscape", *given)
    else:
        result = natprec("landscape", *given)
    assert result.code == 2
    assert said in result.reason


def test_a_missing_folder_is_refused_without_torch() -> None:
    code = (
        "import sys\nfrom natprec.cli import main\nsys.argv = ['natprec', 'landscape', '--taef2', 'none']\n"
        "try: main()\nexcept SystemExit as stop: print(stop.code, 'torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["2", "False"]
