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
