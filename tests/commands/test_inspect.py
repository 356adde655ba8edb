from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from natprec.energy.inspected import erased_bits
from tests.run_command import natprec

FEW = ("--tokens", "256", "--sequence-length", "32")


@pytest.fixture(scope="module")
def inspected(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, text_file: Path) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("out") / "inspected"
    result = natprec("inspect", "--model", tiny_folder, "--data", text_file, *FEW, "--json", "--out", out)
    assert result.code == 0, result.err
    found: dict[str, Any] = json.loads(result.out)
    return {
        **found,
        "picture": (out / "graph.svg").read_text(),
        "file": json.loads((out / "inspection.json").read_text()),
    }


def test_the_contract_of_scripts(inspected: dict[str, Any]) -> None:
    site = {"name", "kind", "elements", "entropy_bits", "realized_codes", "lossless_bits", "b_star"}
    boundary = {
        "source", "target", "source_entropy_bits", "target_bits", "injective", "free", "erased_bits",
        "landauer_joules", "fused",
    }  # fmt: skip
    assert all(site <= row.keys() for row in inspected["sites"])
    assert all(row["b_star"].keys() == {"forward", "backward", "dual"} for row in inspected["sites"])
    assert all(boundary <= row.keys() for row in inspected["boundaries"])
    assert inspected["captured_by"] == "torch.export"
    kinds = [row["kind"] for row in inspected["sites"]]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {"weight": 15, "activation": 11, "key": 2, "value": 2}


def test_the_bits_that_a_token_erases(inspected: dict[str, Any], tmp_path: Path) -> None:
    """By token, whatever the text: each value of a Linear's input is counted once for each token."""
    file = tmp_path / "inspection.json"
    file.write_text(json.dumps(inspected["file"]))
    activations = [row for row in inspected["boundaries"] if row["kind"] == "activation"]
    assert inspected["tokens"] == 256
    assert all(row["elements"] % 256 == 0 for row in activations)
    assert erased_bits(file) == pytest.approx(sum(row["erased_bits"] for row in activations) / 256)
    assert erased_bits(file) > 0


def test_the_picture_draws_equal_blocks_once(inspected: dict[str, Any]) -> None:
    """An embedding, two blocks of five fused operations each, a head; colours are those of the widths."""
    picture = ElementTree.fromstring(inspected["picture"])
    words = [element.text or "" for element in picture.iter("{http://www.w3.org/2000/svg}text")]
    widths = {row["name"]: row["width"] for row in inspected["sites"]}
    assert f"q k v  {widths['model.layers.0.self_attn.q_proj']}" in words
    alike = "model.layers.0  ×2" in words
    assert sum(word.startswith("gate up") for word in words) == (1 if alike else 2)
    assert inspected["file"]["sites"] == inspected["sites"]


def test_the_dual_is_the_wider_of_both(inspected: dict[str, Any]) -> None:
    for row in inspected["sites"]:
        star = row["b_star"]
        if star["dual"] is not None:
            assert star["dual"] == max(star["forward"], star["backward"])


def test_free_means_injective_and_erases_nothing(inspected: dict[str, Any]) -> None:
    assert {row["free"] for row in inspected["boundaries"]} == {True, False}
    for row in inspected["boundaries"]:
        assert row["injective"] is (row["erased_bits"] == 0)
        assert row["injective"] or not row["free"]
        assert row["erased_bits"] >= row["erased_bits_bound"] * 0.97  # its entropy is a corrected estimate
        assert row["landauer_joules"] == pytest.approx(row["erased_bits"] * 2.870978885e-21, rel=1e-9)


def test_strict_refuses_what_is_not_compressed_explicitly(tiny_folder: Path, text_file: Path) -> None:
    result = natprec("inspect", "--model", tiny_folder, "--data", text_file, *FEW, "--strict")
    assert result.code == 2
    assert "this operation expects H <= 2 bits but received H = " in result.reason
    assert "information would be destroyed without explicit compression" in result.reason
    assert result.out == ""


def test_a_site_that_does_not_exist(tiny_folder: Path, text_file: Path) -> None:
    result = natprec(
        "inspect", "--model", tiny_folder, "--data", text_file, *FEW, "--site", "model.layers.0.mlp.gate_prj"
    )
    assert result.code == 2
    assert "did you mean 'model.layers.0.mlp.gate_proj'?" in result.reason


def test_a_plan_is_explicit_and_shows_its_budget(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    measured, plan = tmp_path / "m", tmp_path / "plan.json"
    assert natprec("measure", "--model", tiny_folder, "--data", text_file, *FEW, "--out", measured).code == 0
    assert natprec("solve", measured, "--bits", "4", "--out", plan).code == 0
    common = ("--data", text_file, *FEW, "--measurement", measured)
    result = natprec("inspect", "--plan", plan, "--model", tiny_folder, *common, "--strict", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert found["budget"]["weights"] > 0
    assert {row["target_bits"] for row in found["boundaries"]} <= set(range(2, 9))
    result = natprec("inspect", "--plan", plan, *common)
    assert result.code == 2
    assert "name it with --model" in result.err, "a plan does not say where a folder lies"
    assert natprec("inspect", *common).code == 2


def test_a_joint_plan_hands_units_their_inputs_in_codes(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """W4A8 or wider weights: boundaries of inputs go to 8 bits; the residual stream stays at 16."""
    measured, plan = tmp_path / "m", tmp_path / "plan.json"
    options = ("--sites", "all", "--out", measured)
    assert natprec("measure", "--model", tiny_folder, "--data", text_file, *FEW, *options).code == 0
    assert natprec("solve", measured, "--eps", "0.1", "--activations", "8", "--out", plan).code == 0
    result = natprec(
        "inspect",
        "--plan",
        plan,
        "--model",
        tiny_folder,
        "--data",
        text_file,
        *FEW,
        "--measurement",
        measured,
        "--json",
    )
    assert result.code == 0, result.err
    found = json.loads(result.out)
    entering = [row for row in found["boundaries"] if row["kind"] == "activation" and row["target_unit"]]
    assert entering
    assert {row["target_bits"] for row in entering} == {8}
    star = {row["name"]: row["b_star"] for row in found["sites"]}["model.layers.0.mlp.gate_proj:input"]
    assert star["forward"] is not None


def test_no_text_for_an_encoder(encoder_folder: Path) -> None:
    result = natprec("inspect", "--model", encoder_folder, *FEW)
    assert result.code == 2
    assert "--data" in result.reason


@pytest.mark.parametrize("site", [None, "model.layers.1"])
def test_a_block_runs_lowered_and_differs_by_rounding_alone(
    tmp_path: Path, tiny_folder: Path, text_file: Path, site: str | None
) -> None:
    """T15: kernels compute what the dense block with the same weights does; rounding costs far more."""
    where = ("--site", site) if site else ()
    result = natprec("inspect", "--model", tiny_folder, "--data", text_file, *FEW, "--lower", *where, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["lowered"]
    assert found["block"] == (site or "model.layers.0")
    assert len(found["calls"]) == 7
    assert {call["epilogue"] for call in found["calls"].values()} >= {"none", "silu+gated"}
    assert found["kernels"] < 5e-5
    assert 100 * found["kernels"] < found["rounding"] < 1


def test_only_a_block_can_be_lowered(tiny_folder: Path, text_file: Path) -> None:
    result = natprec("inspect", "--model", tiny_folder, "--data", text_file, *FEW, "--lower", "--site", "lm_head")
    assert result.code == 2
    assert "unknown block 'lm_head'" in result.err
