"""Recipes: options that a file gives, what it refuses, and what a run is compared with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from natprec.commands.options import types_of
from natprec.commands.quantize import ONE_RUN, quantize
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.pipeline.recipe import FIGURES, Recipe, lines
from tests.run_command import left_behind, natprec

TYPES = {name: each for name, each in types_of(quantize).items() if name not in ONE_RUN}
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def tiny(model: Path, text: Path, more: str = "", eps: str = "eps = 2e-4") -> str:
    return f"""
{eps}
group_size = 32          # a number, as in Python; "channel" or "auto" are text
sequence-length = 64     # as on the command line
[options]
model = "{model}"
data = "{text}"
tokens = 128
eval_tokens = 128
rounding = "rtn"
out = "out"
overwrite = true
[about]
hardware = "any"
{more}"""


def test_a_recipe_is_the_options_it_gives(here: Path, tiny_folder: Path, text_file: Path) -> None:
    expected = """
[expected]
tolerance = { kl_measured = 0.5, stored_bytes = 0 }
bits_per_weight = 1.5
kl_measured = 1e-9
stored_bytes = 1
"""
    file = written(here.parent, tiny(tiny_folder, text_file, expected))
    result = natprec("quantize", "--recipe", file, "--json")
    assert result.code == 0, result.err
    plan = json.loads((here / "out" / "plan.json").read_text())
    assert plan["eps"] == 2e-4
    found = json.loads(result.out)
    assert found["tokens"] == 128
    rows = found["expected"]
    assert set(rows) == {"bits_per_weight", "kl_measured", "stored_bytes"}
    assert rows["bits_per_weight"]["tolerance"] == 0.05
    assert rows["bits_per_weight"]["found"] == pytest.approx(plan["bits_per_weight"])
    assert rows["kl_measured"]["found"] == found["kl_mean"]
    assert not any(row["agrees"] for row in rows.values())

    result = natprec("quantize", "--recipe", file, "--eps", "1e-3", "--group-size", "channel")
    assert result.code == 0, result.err
    plan = json.loads((here / "out" / "plan.json").read_text())
    assert plan["eps"] == 1e-3, "what the command line says wins"
    assert {choice["group_size"] for choice in plan["sites"].values()} <= {-1, None}
    printed = [line for line in result.out.splitlines() if "the recipe expects" in line]
    assert len(printed) == 3
    assert printed[0].startswith("bits_per_weight is ")
    assert "1.5 within 5 %: +" in printed[0]

    figures = f"\n[expected]\nstored_bytes = {found['stored_bytes']}\nbits_per_weight = {found['bits_per_weight']}"
    same = written(here.parent, tiny(tiny_folder, text_file, figures))
    result = natprec("quantize", "--recipe", same)
    assert "as the recipe expects: stored_bytes, bits_per_weight\n" in result.out


BAD: list[tuple[str, tuple[str, ...]]] = [
    ("epz = 1", ("unknown key 'epz'", "did you mean 'eps'?")),
    ("sequence_lenght = 64", ("unknown key 'sequence_lenght'", "did you mean 'sequence_length'?")),
    ("resume = true", ("unknown key 'resume'",)),
    ('[abot]\nhardware = "x"', ("unknown key 'abot'",)),
    ('eps = "0.05"', ("eps is '0.05', and must be a number",)),
    ("eps = true", ("eps is True, and must be a number",)),
    ("tokens = 512.5", ("tokens is 512.5, and must be a whole number",)),
    ("tokens = true", ("tokens is True, and must be a whole number",)),
    ("model = 7", ("model is 7, and must be text",)),
    ("trust_remote_code = 1", ("trust_remote_code is 1, and must be true or false",)),
    ("overwrite = 'yes'", ("overwrite is 'yes', and must be true or false",)),
    ("group_size = 32.5", ("group_size is 32.5, and must be text",)),
    ("group_size = true", ("group_size is True, and must be text",)),
    ("data = ['a', 'b']", ("data is ['a', 'b'], and must be text",)),
    ("eps_scope = 'layer'", ("eps_scope is an unknown name 'layer'", "model, site")),
    ("eps = 1\n[options]\neps = 2", ("eps is given twice",)),
    ("group_size = 32\ngroup-size = 64", ("group-size is given twice",)),
    ("options = 3", ("options is 3", "[options]")),
    ("about = 'x'", ("about is 'x'", "[about]")),
    ("[expected]\nkl_measure = 1", ("unknown figure of [expected] 'kl_measure'", "did you mean 'kl_measured'?")),
    ("[expected]\nkl_measured = 'low'", ("expected.kl_measured is 'low', and must be a number",)),
    ("[expected]\nkl_measured = nan", ("expected.kl_measured is nan, and must be a number",)),
    ("[expected]\ntolerance = -1\nkl_measured = 1", ("expected.tolerance is -1",)),
    ("[expected]\ntolerance = {kl = 1}\nkl_measured = 1", ("unknown figure of tolerance 'kl'",)),
    ("eps = ", ("is not TOML",)),
    ("eps == 1", ("is not TOML",)),
    ("eps = 1\neps = 2", ("is not TOML",)),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=[text for text, _ in BAD])
def test_what_is_no_recipe(here: Path, text: str, words: tuple[str, ...]) -> None:
    result = natprec("quantize", "--recipe", written(here.parent, text))
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1, result.err
    assert "recipe.toml'" in result.reason
    assert [word for word in words if word not in result.reason] == []
    assert left_behind(here) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('model = "m"\nbits = 4\nactivations = "auto"', "activations 'auto' shares a tolerance; with a size"),
        ('model = "m"\nbits = 4\neps_scope = "site"', "eps-scope 'site'"),
        ('model = "m"\neps = -1', "eps -1.0: a tolerance is a positive number"),
        ('model = "m"\neps = nan', "eps is nan, and must be a number"),
        ('model = "m"', "nothing to solve for"),
        ("eps = 1", "Missing option '--model'"),
        ('model = "m"\neps = 1\nrounding = "gtpq"', "unknown rounding 'gtpq'; did you mean 'gptq'?"),
        ('model = "m"\neps = 1\ngroup_size = 0', "group size '0'"),
        ('model = "m"\neps = 1\nkv = 3', "kv '3': engine 'vllm' keeps keys and values at 8, 16 bits"),
    ],
)
def test_a_recipe_that_cannot_work(here: Path, text: str, words: str) -> None:
    result = natprec("quantize", "--recipe", written(here.parent, text))
    assert (result.code, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1, result.err
    assert words in result.reason
    assert left_behind(here) == []


def test_files_that_cannot_be_read(here: Path, tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for file, words in (("no.toml", "does not exist"), (tmp_path, "cannot be read"), (binary, "is not TOML")):
        result = natprec("quantize", "--recipe", file)
        assert result.code == 2
        assert words in result.reason, result.reason
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("file", RECIPES, ids=[file.stem for file in RECIPES])
def test_the_recipes_that_are_shipped(file: Path) -> None:
    """They are read, they could run, and what they were run on is said."""
    recipe = Recipe.read(file, TYPES)
    known = {name: value for name, value in recipe.options.items() if name in QuantizeConfig.__dataclass_fields__}
    QuantizeConfig(**known).check()
    assert recipe.about
    if recipe.expected:
        assert {"bits_per_weight", "kl_predicted", "kl_measured", "stored_bytes"} <= set(recipe.expected)
        assert {"hardware", "date", "duration_seconds"} <= set(recipe.about)


@pytest.mark.parametrize("file", RECIPES, ids=[file.stem for file in RECIPES])
def test_the_recipes_that_are_shipped_run(
    file: Path, here: Path, tiny_folder: Path, encoder_folder: Path, text_file: Path
) -> None:
    """On a tiny model, to a size or tolerance that it has."""
    recipe = Recipe.read(file, TYPES)
    model = encoder_folder if "minilm" in file.stem else tiny_folder
    target = ("--bits", 9) if "bits" in recipe.options else ("--eps", 1)
    result = natprec(
        "quantize", "--recipe", file, "--model", model, "--data", text_file, *target, "--tokens", 512,
        "--eval-tokens", 512, "--sequence-length", 64, "--out", "out",
        *(() if "group_size" in recipe.options else ("--group-size", 32)),
    )  # fmt: skip
    assert result.code == 0, result.err
    plan = json.loads((here / "out" / "plan.json").read_text())
    assert plan["engine"] == recipe.options["engine"]
    assert (plan["cache"] is not None) == ("kv" in recipe.options)


def test_numbers_are_compared_relative_to_what_is_expected(tmp_path: Path) -> None:
    text = "[expected]\ntolerance = 0.1\nkl_measured = 2\nstored_bytes = 0\nperplexity_reference = 3"
    recipe = Recipe.read(written(tmp_path, text), TYPES)

    rows = recipe.compared({"kl_mean": 2.19, "stored_bytes": 1, "perplexity_reference": None})
    assert [row["agrees"] for row in rows.values()] == [True, False, False]
    assert lines(rows) == [
        "stored_bytes is 1, and the recipe expects 0 within 10 %",
        "perplexity_reference was not measured, and the recipe expects 3 within 10 %",
    ]
    assert set(FIGURES.values()) <= set(Verification.__dataclass_fields__)


def test_every_option_has_a_type_that_is_checked(tmp_path: Path) -> None:
    """A date suits none."""
    for name in TYPES:
        with pytest.raises(InputError, match=rf"{name} is (datetime.date\(2026, 1, 1\), and must be|an unknown name)"):
            Recipe.read(written(tmp_path, f"{name} = 2026-01-01"), TYPES)
