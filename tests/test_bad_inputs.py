"""Bad options and damaged files, a few of those that `scripts/bad_inputs.py` tries: one line each, nothing touched."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"
MODULES = ("bad_inputs", "bad_cases", "fuzz", "same_bytes")


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield importlib.import_module("bad_inputs")
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def good(script: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    script.inputs(folder)
    return folder


def test_there_are_500_and_every_command_has_some(script: Any) -> None:
    from natprec.cli import app

    every = script.cases()
    assert len(every) >= 500
    assert {case.arguments[0] for case in every} == {
        each.name or each.callback.__name__ for each in app.registered_commands
    }
    assert len({(case.arguments, case.file, case.damage) for case in every}) == len(every)


def test_each_is_refused_in_one_line(script: Any, good: Path) -> None:
    slow = ("eval", "compare", "energy")  # they import other people's programs
    every = [case for case in script.cases() if case.arguments[0] not in slow]
    for case in random.Random(0).sample(every, 30):
        code, fault = script.fault(case, good)
        assert (code, fault) == (2, ""), case.name


DAMAGED = (
    "measure with model.gguf: folder",
    "quantize with model/model.safetensors: deep",
    "generate with made/config.json: deep",
    "report with made/verification.json: folder",
)
"""What was a finding once: the file, and how it was damaged."""


def test_past_findings_of_damaged_files(script: Any, good: Path) -> None:
    past = [case for case in script.cases() if case.name in DAMAGED]
    assert {case.name for case in past} == set(DAMAGED)
    for case in past:
        assert script.fault(case, good) == (2, ""), case.name


def test_what_is_not_refused_is_a_finding(script: Any, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solve = ("solve", "measured", "--eps", "0.05", "--out")
    assert script.fault(script.Case((*solve, "out"), "nothing"), good) == (0, "exit code 0: ")

    def careless(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
        (folder / "text.txt").write_text("gone")
        return 2, "natprec: refused\n"

    def noisy(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
        return 2, "natprec: refused\nnatprec: refused again\n"

    def defective(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
        raise KeyError("site")

    case = script.Case((*solve, "out"), "nothing")
    for ran, said in ((careless, "it changed ['text.txt'"), (noisy, "2 lines refuse"), (defective, "KeyError: 'site'")):
        monkeypatch.setattr(script, "ran", ran)
        assert script.fault(case, good)[1].startswith(said)


LONG, ENDLESS = "x" * 300, "x" * 5000
EVAL = "eval made --model model --tasks piqa --tasks-data tasks --out out"

FOUND = {
    "long name of a text": (f"quantize --model model --eps 0.1 --data {LONG}", "File name too long"),
    "long name of a model": (f"measure --model {LONG} --out out", "File name too long"),
    "long name of an output": (f"measure --model model --data text.txt --out {LONG}", "File name too long"),
    "long name of a plan": (f"apply {LONG} --model model --out out", "File name too long"),
    "NUL": ("quantize --recipe a\0b --out out", "NUL"),
    "long value": (f"solve measured --eps 0.1 --out out --engine {ENDLESS}", "known: bitsandbytes"),
    "no engine": ("solve measured --eps 0.1 --out out --engine=", "unknown engine ''"),
    "no rounding to solve for": ("solve measured --eps 0.1 --out out --rounding=", "unknown rounding ''"),
    "no rounding to apply": ("apply plan.json --model model --out out --rounding=", "unknown rounding ''"),
    "text without end": (f"apply plan.json --model model --out out --learn-tokens {'9' * 30}", "up to 1000000000000"),
    "a text as output": ("verify made --model model --eval-data text.txt --out text.txt", "is the input 'text.txt'"),
    "a config as output": ("verify made --model model --out model/config.json", "lies in the input"),
    "other things as output": ("verify made --model model --out plan.json", "exists and is no verification"),
    "more shots than documents": (f"{EVAL} --shots 5", "lower --shots"),
    "NUL in an address": ("energy --endpoint a\0b --out out", "is no address"),
    "windows without end": (f"energy made --repeat {'9' * 30} --out out", "from 1 to 10000"),
    "rounds without end": (f"costs --shapes 32x32 --repeat {'9' * 30} --out out", "from 1 to 10000"),
    "empty name to report": ("report  --out out", "the argument after 'report' is empty"),
    "empty name of a card": ("card  --out out", "the argument after 'card' is empty"),
    "documents without end": (f"{EVAL} --limit {'9' * 30}", "1000000000"),
}
"""What was a finding once: the command, and what it says now."""


@pytest.mark.parametrize("name", FOUND)
def test_past_findings(script: Any, good: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    line, said = FOUND[name]
    heard = []

    def listening(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
        heard.append(ran(arguments, folder))
        return heard[-1]

    ran = script.ran
    monkeypatch.setattr(script, "ran", listening)
    assert script.fault(script.Case(tuple(line.split(" ")), name), good) == (2, "")
    ((_, err),) = heard
    assert said in err
    assert len(err) < 1600


def test_a_verification_is_written_anew(script: Any, good: Path, tmp_path: Path) -> None:
    arguments = ("verify", str(good / "made"), "--model", str(good / "model"), "--eval-data", str(good / "text.txt"))
    for _ in range(2):
        code, err = script.ran((*arguments, "--eval-tokens", "128", "--out", "v.json"), tmp_path)
        assert code in (0, 3), err
    assert [file.name for file in tmp_path.iterdir()] == ["v.json"]
