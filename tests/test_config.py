"""One configuration: the command line, headers and the notebook's keywords follow from its fields."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from dataclasses import dataclass, fields
from typing import Any

import pytest
import typer

import natprec
from natprec import config as configuration
from natprec import distortions
from natprec.cli import app
from natprec.commands import options
from natprec.commands.options import configured
from natprec.config import COMMANDS, OPTIONS, Measured, QuantizeConfig
from natprec.errors import InputError
from natprec.measurement import Header
from natprec.utils.options import METHOD, option, options_of
from tests.arrange import header
from tests.run_command import natprec as command
from tests.speed import allowed

HEAVY = ("torch", "transformers", "numpy", "safetensors", "compressed_tensors", "huggingface_hub")


def imported(code: str) -> list[str]:
    """Which of the heavy packages a fresh interpreter has after running this."""
    shown = f"{code}\nimport sys\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    return eval(done.stdout.splitlines()[-1])


def running(*arguments: str) -> str:
    return f"""
import sys
sys.argv = ["natprec", *{arguments}]
from natprec.cli import main
try:
    main()
except SystemExit:
    pass"""


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("quantise",),
        *((name, "--help") for name in COMMANDS),
        ("quantize", "--model", "m", "--epz", "1"),
        ("quantize", "--model", "m", "--eps", "small"),
        ("quantize", "--model", "m", "--eps", "-1"),
        ("quantize", "--model", "m", "--eps", "1", "--rounding", "gtpq"),
        ("quantize", "--model", "m", "--eps", "1", "--engine", "vlm"),
        ("quantize", "--recipe", "no-such-file.toml"),
    ],
    ids=" ".join,
)
def test_what_needs_no_model_imports_no_torch(arguments: tuple[str, ...]) -> None:
    assert imported(running(*arguments)) == []


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("quantise",), ("quantize", "--epz", "1")])
def test_the_first_answer_comes_at_once(arguments: tuple[str, ...]) -> None:
    """Seconds of the processor, which other processes do not lengthen; importing torch alone takes more than 1."""
    taken = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "natprec", *arguments], capture_output=True, check=False)
        after = os.times()
        taken.append(after.children_user + after.children_system - before.children_user - before.children_system)
    assert min(taken) < allowed(0.7)


def test_names_of_the_package_come_when_asked_for() -> None:
    light = "natprec.config, natprec.errors, natprec.formats.engines"
    assert imported(f"import natprec, {light}\nnatprec.QuantizeConfig, natprec.InputError") == []
    assert "torch" in imported("from natprec import measure"), "the test sees an import"
    assert set(natprec.__all__) <= set(dir(natprec))
    assert [name for name in natprec.__all__ if getattr(natprec, name, None) is None] == []
    assert {name for names in natprec._HOMES.values() for name in names} == set(natprec.__all__)
    assert natprec.pipeline.quantize.quantize is natprec.quantize
    with pytest.raises(AttributeError, match="'natprec' has no attribute 'quantise'"):
        _ = natprec.quantise


def test_names_are_those_of_what_they_name() -> None:
    assert all(distortions.named(name).name == name for name in configuration.DISTORTIONS)


def test_every_field_is_an_option_of_some_command() -> None:
    taken = {name for names in COMMANDS.values() for name in names}
    assert taken == set(OPTIONS)
    registered = {each.callback.__name__ for each in app.registered_commands if each.callback}
    assert registered - set(COMMANDS) == {"card", "push", "report"}  # of finished files: no model, no text
    assert set(COMMANDS) <= registered
    for name, names in COMMANDS.items():
        shown = command(name, "--help").out
        flags = {each: OPTIONS[each].flag.split("/") for each in names}
        assert [each for each, forms in flags.items() if not all(form in shown for form in forms)] == []


def test_a_measurement_holds_the_options_that_enter_it() -> None:
    entering = {field.name for field in fields(Measured)}
    assert entering <= {field.name for field in fields(Header)}
    made = header(seed=3, rounding="rtn")
    assert made.identity([]) == {**made.identity([]), "seed": 3, "rounding": "rtn"}
    other = {name: dataclasses.replace(made, **{name: "other"}) for name in entering}
    assert all(each.identity([]) != made.identity([]) for each in other.values())


def test_a_new_option_is_a_field(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one line in the configuration brings: a flag with help and checks, and a key of a recipe."""

    @dataclass(frozen=True)
    class Longer(QuantizeConfig):
        patience: str = option("3", METHOD, "How long to wait.", choices=("3", "4"))

    monkeypatch.setattr(options, "QuantizeConfig", Longer)
    monkeypatch.setattr(options, "OPTIONS", options_of(Longer))
    monkeypatch.setattr(options, "COMMANDS", {"wait": ("patience",)})
    monkeypatch.setitem(options._TYPES, "patience", str)
    seen: list[Any] = []

    def wait(config: QuantizeConfig) -> None:
        seen.append(config)

    app = typer.Typer()
    app.command()(configured(wait))
    app(["--patience", "4"], standalone_mode=False)
    app([], standalone_mode=False)
    assert [each.patience for each in seen] == ["4", "3"]
    with pytest.raises(InputError, match="unknown patience '5'; known: 3, 4"):
        app(["--patience", "5"], standalone_mode=False)


def test_keywords_of_the_notebook_are_the_commands_own() -> None:
    assert QuantizeConfig.of("measure", "m", {"group_size": 32, "length": 64}).length == 64
    with pytest.raises(InputError, match=r"unknown option of measure 'group_sise'; did you mean 'group_size'\?"):
        QuantizeConfig.of("measure", "m", {"group_sise": 32})
    with pytest.raises(InputError, match="unknown option of apply 'engine'"):
        QuantizeConfig.of("apply", "m", {"engine": "vllm"})
    with pytest.raises(InputError, match="unknown estimator 'fischer'"):
        natprec.measure(None, None, estimator="fischer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "nothing to solve for"),
        ({"bits": 4.0, "activations": "auto"}, "activations 'auto' shares a tolerance"),
        ({"max_size": 1e6, "activations": "auto"}, "activations 'auto' shares a tolerance"),
        ({"bits": 4.0, "eps_scope": "site"}, "eps-scope 'site' gives each site the tolerance, and there is none"),
        ({"eps": 1.0, "learn_tokens": -1}, "learn-tokens -1: give a number of tokens"),
        ({"eps": 1.0, "time": 0.0}, "time 0.0: give a positive number"),
        ({"eps": 1.0, "length": 1}, "sequence-length 1: a sequence needs at least 2 tokens"),
        ({"eps": 1.0, "tokens": 100}, "tokens 100 is less than one sequence of 256; raise --tokens"),
        ({"eps": 1.0, "weights": "dick"}, "unknown weights 'dick'; did you mean 'disk'"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_loaded(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        QuantizeConfig("m", **changes).check()
