"""Files that are passed on, and `--json`, say nothing of the machine: no folder, no user, no host."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from natprec.comparison import compare as flow
from natprec.comparison.methods import METHODS
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.utils.records import public_name, without_places
from tests.comparison.test_processes import fake
from tests.conftest import made_up_text
from tests.run_command import SMALL, natprec

USER, HOST = "someone-here", "desk-of-someone"
SIZES = (*SMALL, "--eval-tokens", "512")


@pytest.fixture
def home(tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a model and two texts, on a host with a name."""
    home = tmp_path / USER
    shutil.copytree(tiny_folder, home / "models" / "tiny")
    shutil.copy(text_file, home / "text.txt")
    (home / "other.txt").write_text(made_up_text(9000, seed=5))
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    return home


def run(*arguments: object) -> str:
    """`--json` of a command that succeeds."""
    result = natprec(*arguments, "--json")
    assert result.code in (0, 3), result.err
    json.loads(result.out)
    return result.out


def refuse_places(contents: dict[str, bytes], home: Path) -> None:
    found = [
        (name, place)
        for name, content in contents.items()
        for place in (str(home.parent), USER, HOST)
        if place.encode() in content
    ]
    assert not found


def files(*folders: Path) -> dict[str, bytes]:
    every = [file for folder in folders for file in ([folder] if folder.is_file() else folder.rglob("*"))]
    return {str(file): file.read_bytes() for file in every if file.is_file()}


@pytest.mark.parametrize("engine", ["vllm", "llama.cpp"])
def test_no_command_writes_places(home: Path, engine: str) -> None:
    model, text, other, made = home / "models" / "tiny", home / "text.txt", home / "other.txt", home / "made"
    common = ("--model", model, "--data", text, *SMALL, "--engine", engine)
    said = {
        "quantize": run("quantize", *common, "--bits", "6", "--eval-data", other, "--eval-tokens", "512",
                        "--out", made / "whole"),
        "measure": run("measure", *common, "--rounding", "rtn", "--out", made / "m"),
        "solve": run("solve", made / "m", "--bits", "6", "--out", made / "plan.json"),
        "apply": run("apply", made / "plan.json", "--model", model, "--out", made / "applied"),
    }  # fmt: skip
    if engine == "vllm":
        said["verify"] = run(
            "verify", made / "whole", "--model", model, "--eval-data", other, "--eval-tokens", "512",
            "--sequence-length", "64",
        )  # fmt: skip
        said["generate"] = run("generate", made / "whole", "--prompt", "abc", "--max-new-tokens", "2", "--explain")
    written = files(made)
    weights = {"model.gguf"} if engine == "llama.cpp" else {"config.json", "model.safetensors"}
    assert {"plan.json", "verification.json", "measurement.safetensors", *weights} <= {Path(n).name for n in written}
    refuse_places(written | {name: text.encode() for name, text in said.items()}, home)
    plan, measurement = Plan.load(made / "plan.json"), Measurement.load(made / "m")
    assert plan.model == measurement.header.model == "tiny"
    assert measurement.header.data == "text.txt"
    assert json.loads((made / "whole" / "verification.json").read_text())["data"] == "other.txt"


def test_inspect_writes_no_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the export fails with the place of a file."""
    cause = f"cannot open '{home}/models/x.py' on {HOST}"

    def fails(*arguments: object, **named: object) -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr("torch.export.export", fails)
    said = run(
        "inspect", "--model", home / "models" / "tiny", "--data", home / "text.txt", "--tokens", "256",
        "--sequence-length", "64", "--group-size", "32", "--out", home / "inspected",
    )  # fmt: skip
    assert "cannot open 'x.py'" in said
    refuse_places(files(home / "inspected") | {"json": said.encode()}, home)


def test_compare_writes_no_places(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs, logs with a traceback, rows and the report."""
    for name, method in {"gptq": fake("round"), "rtn": fake("fail"), "awq": fake("die")}.items():
        monkeypatch.setitem(METHODS, name, method)
    assert flow.METHODS is METHODS
    out = home / "compared"
    said = run(
        "compare", "--model", home / "models" / "tiny", "--data", home / "text.txt", "--eval-data", home / "other.txt",
        *SIZES, "--methods", "rtn,gptq,awq", "--bits", "4", "--out", out,
    )  # fmt: skip
    written = files(out)
    log = written[str(out / "rtn-4" / "log.txt")].decode()
    assert 'fake_peer.py", line' in log, "a traceback names its files"
    assert {row["method"]: row["status"] for row in json.loads(said)["rows"]} == {
        "gptq": "ok",
        "rtn": "ValueError: no such group",
        "awq": "killed by SIGKILL (out of memory?); see awq-4/log.txt",
    }
    refuse_places(written | {"json": said.encode()}, home)


def test_public_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    for source in ("models/tiny", "./models/tiny/", str(tmp_path / "models" / "tiny"), tmp_path / "models" / "tiny"):
        assert public_name(source) == "tiny"
    assert public_name(".") == tmp_path.name
    assert public_name("/gone/away") == "away"
    assert public_name("~nobody-of-this-name/file.txt") == "file.txt"
    for name in ("smollm2-135m", "owner/model", "owner/data:config:split"):
        assert public_name(name) == name


def test_places_in_what_others_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", USER)
    monkeypatch.setattr(socket, "gethostname", lambda: HOST)
    for said, expected in {
        f'  File "/home/{USER}/a b.py", line 3': '  File "a b.py", line 3',
        "PATH=/usr/bin:/opt/x/bin": "PATH=bin:bin",
        "rates of 1/2 and/or 3/4; a / b": "rates of 1/2 and/or 3/4; a / b",
        "site-packages/torch/nn.py": "site-packages/torch/nn.py",
        f"started by {USER} at {HOST}:29500": "started by user at host:29500",
        "https://pypi.org/simple/x": "https://pypi.org/simple/x",
        "see https://hf.co//tmp/a/model": "see https://hf.co/model",
    }.items():
        assert without_places(said) == expected
