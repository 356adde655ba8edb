"""`yes | natprec COMMAND`: code that comes with a model or a tokenizer leaves no trace unless it is trusted; where it
is, trust reaches every load, and the code is part of what is written.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.run_command import SMALL, natprec

COMMANDS = (
    "quantize", "measure", "apply", "verify", "verify the checkpoint", "generate", "inspect", "compare", "energy",
    "energy of the checkpoint",
)  # fmt: skip
CONFIGURATION = "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'its_own'\n"
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
TOKENIZER = "from transformers import PreTrainedTokenizerFast\nclass OwnTokenizer(PreTrainedTokenizerFast):\n    pass\n"


class Yes(io.TextIOBase):
    """What the command `yes` writes, without an end."""

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return "y\n"


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def with_code(folder: Path, *, model: bool, tokenizer: bool) -> Path:
    """The folder, whose code leaves the file `ran` beside the folder when it is imported."""
    trace = f"open({str(folder.parent / 'ran')!r}, 'a').write('x')\n"
    if model:
        classes = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
        edit(folder / "config.json", model_type="its_own", architectures=["OwnForCausalLM"], auto_map=classes)
        (folder / "configuration_own.py").write_text(trace + CONFIGURATION)
        (folder / "modeling_own.py").write_text(trace + MODEL)
    if tokenizer:
        own = {"AutoTokenizer": [None, "tokenization_own.OwnTokenizer"]}
        edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)
        (folder / "tokenization_own.py").write_text(trace + TOKENIZER)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> Path:
    """A checkpoint of the tiny model, by round to nearest."""
    out = tmp_path_factory.mktemp("made") / "out"
    options = ("--model", tiny_folder, "--data", text_file, *SMALL, "--eval-tokens", 256)
    assert natprec("quantize", *options, "--bits", 5, "--rounding", "rtn", "--out", out).code == 0
    return out


def command(name: str, model: Path, checkpoint: Path, plain: Path, text: Path, out: Path) -> list[Any]:
    """Arguments that make a command load `model`, or `checkpoint`."""
    text_options = ["--data", text, *SMALL]
    return {
        "quantize": ["quantize", "--model", model, "--bits", 5, *text_options, "--out", out],
        "measure": ["measure", "--model", model, *text_options, "--out", out],
        "apply": ["apply", checkpoint / "plan.json", "--model", model, "--rounding", "rtn", "--out", out],
        "verify": ["verify", checkpoint, "--model", model, "--eval-data", text, "--eval-tokens", 128,
                   "--sequence-length", 64],
        "verify the checkpoint": ["verify", checkpoint, "--model", plain, "--eval-data", text, "--eval-tokens", 128,
                                  "--sequence-length", 64],
        "generate": ["generate", checkpoint, "--prompt", "abc", "--max-new-tokens", 2],
        "inspect": ["inspect", "--model", model, *text_options],
        "energy": ["energy", model, "--counter", "none", "--idle", "ignore"],
        "energy of the checkpoint": ["energy", checkpoint, "--counter", "none", "--idle", "ignore"],
        "compare": ["compare", "--model", model, "--methods", "natprec", *text_options],
    }[name]  # fmt: skip


@pytest.fixture
def arguments(tmp_path: Path, tiny_folder: Path, made: Path, text_file: Path) -> Callable[..., list[Any]]:
    def build(name: str, **own: bool) -> list[Any]:
        model = with_code(Path(shutil.copytree(tiny_folder, tmp_path / "model")), **own)
        checkpoint = with_code(Path(shutil.copytree(made, tmp_path / "checkpoint")), **own)
        return command(name, model, checkpoint, tiny_folder, text_file, tmp_path / "out")

    return build


@pytest.mark.parametrize("own", [("model",), ("tokenizer",), ("model", "tokenizer")], ids="+".join)
@pytest.mark.parametrize("name", COMMANDS)
def test_yes_runs_no_code(
    tmp_path: Path,
    arguments: Callable[..., list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    own: tuple[str, ...],
) -> None:
    monkeypatch.setattr("sys.stdin", Yes())
    result = natprec(*arguments(name, **{part: part in own for part in ("model", "tokenizer")}))
    assert not (tmp_path / "ran").exists()
    if name == "verify the checkpoint" and own == ("tokenizer",):
        return  # the tokenizer is the original's
    assert result.code == 2, (result.out, result.err)
    assert "add --trust-remote-code" in result.err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_pipe_of_yes(tmp_path: Path, arguments: Callable[..., list[Any]]) -> None:
    """The same through a real pipe."""
    command_line = [sys.executable, "-m", "natprec", *map(str, arguments("generate", model=True, tokenizer=True))]
    done = subprocess.run(
        command_line, input="y\n" * 1000, env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "add --trust-remote-code" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("own", [("model",), ("model", "tokenizer")], ids="+".join)
def test_trust_reaches_every_load_and_the_code_is_written(
    tmp_path: Path, tiny_folder: Path, text_file: Path, own: tuple[str, ...]
) -> None:
    parts = {part: part in own for part in ("model", "tokenizer")}
    model = with_code(Path(shutil.copytree(tiny_folder, tmp_path / "model")), **parts)
    code = {file.name: file.read_text() for file in model.glob("*.py")}
    options = ["--model", model, "--data", text_file, *SMALL[:4], "--rounding", "rtn", "--trust-remote-code"]
    out, applied = tmp_path / "out", tmp_path / "applied"
    target = ["--bits", 5, *SMALL[4:], "--eval-tokens", 128]
    assert natprec("quantize", *options, *target, "--out", out).code == 0
    assert natprec("apply", out / "plan.json", *options, "--out", applied).code == 0
    assert {file.name: file.read_text() for file in out.glob("*.py")} == code
    assert {file.name: file.read_text() for file in applied.glob("*.py")} == code
    shutil.rmtree(model)
    said = natprec("generate", applied, "--prompt", "abc", "--max-new-tokens", 2, "--trust-remote-code", "--json")
    assert said.code == 0, said.err
    held = ["--eval-data", text_file, "--eval-tokens", 128, "--sequence-length", 64]
    verified = natprec("verify", applied, "--model", tiny_folder, *held, "--trust-remote-code")
    assert verified.code in (0, 3), verified.err
