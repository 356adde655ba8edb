"""What cannot work is refused before torch is imported: within a second or two, whatever the model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from natprec.config import parse_size
from natprec.errors import InputError
from natprec.formats.engines import GGUF_MODELS
from natprec.models.gguf_architectures import ARCHITECTURES
from tests.run_command import left_behind, natprec
from tests.vision_language import pictures

HEAVY = ("torch", "transformers")

RUN = """
import sys
sys.argv = ["natprec", *{arguments}]
from natprec.cli import main
try:
    main()
except SystemExit as stop:
    print(stop.code, [name for name in {heavy} if name in sys.modules])
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, encoder_folder: Path) -> Path:
    """Models and texts, most of which cannot be used."""
    folder = tmp_path_factory.mktemp("early")
    shutil.copytree(tiny_folder, folder / "tiny")
    shutil.copytree(encoder_folder, folder / "encoder")
    shutil.copytree(tiny_folder, folder / "gemma")
    config = json.loads((folder / "gemma" / "config.json").read_text())
    (folder / "gemma" / "config.json").write_text(json.dumps(config | {"model_type": "gemma2"}))
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("abc def " * 40)
    (folder / "latin.txt").write_bytes("Grüße ".encode("latin1") * 9000)
    (folder / "rows.jsonl").write_text('{"foo": "abc"}\n' * 30)
    (folder / "broken.jsonl").write_text("{")
    (folder / "list.json").write_text('{"a": 1}')
    (folder / "taken").mkdir()
    for name in ("sees", "unready"):  # the latter without what makes pictures ready
        shutil.copytree(tiny_folder, folder / name)
        (folder / name / "config.json").write_text(json.dumps(config | {"vision_config": {}}))
    (folder / "sees" / "preprocessor_config.json").write_text("{}")
    pictures(folder / "photos", 2)
    pictures(folder / "torn", 2)
    (folder / "torn" / "b.png").write_bytes((folder / "photos" / "000.png").read_bytes()[:60])
    (folder / "m.measurement").write_bytes(b"\x10\x00")
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--data", "typo.txt"), "does not exist"),
        (("--data", "empty.txt"), "is empty"),
        (("--data", "short.txt"), "too short"),
        (("--data", "latin.txt"), "not UTF-8"),
        (("--data", "rows.jsonl"), "no text column, only foo"),
        (("--data", "rows.jsonl", "--text-column", "fooo"), "did you mean 'foo'?"),
        (("--data", "broken.jsonl"), "line 1 is not JSON"),
        (("--data", "list.json"), "it must be a list"),
        (("--data", "taken"), "is a folder"),
        (("--eval-data", "typo.txt"), "does not exist"),
        (("--images", "photos"), "reads text alone"),
        (("--model", "unready", "--images", "photos"), "has no processor"),
        (("--model", "sees", "--images", "taken"), "holds no picture"),
        (("--model", "sees", "--images", "torn"), "'torn/b.png' cannot be read"),
        (("--out", "taken"), "exists"),
        (("--out", "/proc/x"), "cannot write"),
        (("--group-size", "100"), "group size 100 divides the rows of no Linear"),
        (("--group-size", "32", "--engine", "bitsandbytes"), "no format in groups of 32; use --group-size 64 or 128"),
        (("--model", "gemma", "--engine", "llama.cpp"), "'gemma2' cannot be written as GGUF"),
        (("--model", "nowhere/at/all"), "no such folder or file"),
        (("--max-size", "90XB"), "max-size '90XB'"),
        (("--ladder", "4,4"), "each once"),
        (("--margin", "1"), "margin 1"),
        (("--confidence", "0"), "confidence 0"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_refusal_needs_no_torch(here: Path, options: tuple[str, ...], said: str) -> None:
    arguments = ["quantize", "--model", "tiny", *options]
    arguments += [] if "--ladder" in options else ["--eps", "0.1"]
    code = RUN.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []", done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


def test_measure_refuses_as_early(here: Path) -> None:
    arguments = ["measure", "--model", "tiny", "--data", "typo.txt", "--out", "m"]
    code = RUN.format(arguments=arguments, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 []", done.stderr


@pytest.mark.parametrize("option", ["--component", "--prompts", "--steps", "--image-size"])
def test_verify_refuses_options_of_pipelines(option: str, here: Path) -> None:
    result = natprec("verify", here / "tiny", "--model", here / "tiny", option, "7")
    assert result.code == 2
    assert "is no pipeline of diffusers" in result.reason
    assert f"leave out {option}" in result.reason


def test_what_can_be_used_passes(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """A text that is just long enough, and a group size that divides some Linears only."""
    result = natprec(
        "quantize", "--model", tiny_folder, "--max-size", "1MB", "--data", text_file, "--tokens", 64,
        "--sequence-length", 16, "--eval-tokens", 16, "--group-size", 128, "--rounding", "rtn",
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert left_behind(tmp_path) == ["out"]


def test_gguf_architectures_are_those_that_are_written() -> None:
    assert {name: each.name for name, each in ARCHITECTURES.items()} == GGUF_MODELS


@pytest.mark.parametrize(
    ("text", "size"),
    [("90MB", 9e7), ("4.5GiB", 4.5 * 2**30), ("1 kB", 1e3), ("90e6", 9e7), ("123", 123.0), ("2g", 2e9), (None, None)],
)
def test_sizes_have_units(text: str | None, size: float | None) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "90XB", "-1", "1,5GB", "nan", "inf"])
def test_sizes_that_are_none(text: Any) -> None:
    with pytest.raises(InputError, match="such as 90MB"):
        parse_size(text)
