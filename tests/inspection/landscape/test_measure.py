"""A tiny VAE–DiT–VAE gives a row for each place; what flows is estimated as replaying the network measures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from natprec.distortions import OUTPUT
from natprec.inspection.landscape.claims import DEPENDS, REFUTED, SUPPORTED
from natprec.inspection.landscape.flows import exactly, flow_curves, rounded
from natprec.inspection.landscape.measure import FLOW_WIDTHS, Found, measured, rows
from natprec.inspection.landscape.picture import draw
from natprec.inspection.landscape.report import tables, to_json
from tests.inspection.landscape.networks import dit, tiny_unet, vae


@pytest.fixture(scope="module")
def found() -> list[Found]:
    return [measured(each, (0, 1)) for each in (vae(), dit(), tiny_unet())]


@pytest.fixture(scope="module")
def value(found: list[Found]) -> dict[str, Any]:
    return to_json(found, [rows(each) for each in found], ["Not measured: nothing."])


def test_each_place_has_a_row_by_depth(value: dict[str, Any]) -> None:
    places = [row["place"] for row in value["rows"] if row["network"] == "tiny VAE"]
    assert places == [
        "encoder, first layer", "encoder, 16 px", "encoder, 8 px", "encoder, last layer", "latent",
        "latent, a grid per channel", "decoder, first layer", "decoder, 8 px", "decoder, 16 px", "decoder, last layer",
    ]  # fmt: skip
    assert [row["place"] for row in value["rows"] if row["network"] == "tiny UNet"] == [
        "down, first layer", "down, last layer", "middle, 4 px", "up, first layer", "up, last layer",
    ]  # fmt: skip
    thirds = [row for row in value["rows"] if row["place"].startswith("transformer")]
    assert [row["tensors"] for row in thirds] == [5, 5, 5, 5]


def test_rows_have_what_scripts_rely_on(value: dict[str, Any]) -> None:
    for row in json.loads(json.dumps(value, allow_nan=False))["rows"]:
        low, high = row["claim_bits"]
        assert 3 <= low <= high <= 16
        assert row["verdict"] in (SUPPORTED, REFUTED, DEPENDS)
        assert len(row["verdict_of_each_seed"]) == 2
        assert (row["weights"] is None) == ("latent" in row["place"])
        for flow in filter(None, (row["weights"], row["activations"], row["needs"])):
            assert list(flow) == ["30", "40", "50"]
            means = [each["bits"] for each in flow.values()]
            assert means == sorted(means)
            assert all(each["low"] <= each["high"] and each["bits"] <= each["largest"] for each in flow.values())
        for decibels, needs in row["needs"].items():
            assert needs["bits"] == max(each[decibels]["bits"] for each in (row["weights"], row["activations"]) if each)


def test_a_grid_for_each_channel_needs_no_more_bits(value: dict[str, Any]) -> None:
    by_place = {row["place"]: row["activations"]["50"]["bits"] for row in value["rows"]}
    assert by_place["latent, a grid per channel"] <= by_place["latent"]


def test_claims_of_shape_are_judged_too(value: dict[str, Any]) -> None:
    assert [each["network"] for each in value["shapes"]] == ["tiny VAE"] * 3 + ["tiny UNet"] * 3
    assert {each["verdict"] for each in value["shapes"]} <= {SUPPORTED, REFUTED, DEPENDS}


def test_the_table_shows_every_row(value: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables(value))
    text = console.export_text()
    for row in value["rows"]:
        assert row["place"] in text
    assert text.count(REFUTED) >= sum(row["verdict"] == REFUTED for row in value["rows"])
    assert "Not measured: nothing." in text


def test_the_picture_has_a_panel_for_each_network(value: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    assert draw(value, tmp_path / "landscape.png")
    assert (tmp_path / "landscape.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("network", [vae(), dit(), tiny_unet()], ids=["vae", "dit", "unet"])
def test_the_estimate_agrees_with_replaying(network: Any) -> None:
    """Also where a layer runs once for each step, and where its input goes elsewhere too (a skip, a shared time)."""
    samples, widths = network.samples(3), (6, 8)
    flows = [(layer, False) for place in network.places if place.weighs for layer in place.layers]
    found = flow_curves(network.module, samples, flows, widths, OUTPUT, draws=48, seed=0)
    for flow in flows:
        exact = exactly(network.module, samples, flow, widths, OUTPUT)
        if exact.mean() > 1e-12:
            assert np.abs(np.log2(found[flow].mean(0) / exact.mean(0))).max() < 1.0, flow


def test_measuring_leaves_the_module_as_it_was() -> None:
    network = vae()
    samples = network.samples(0)
    before = network.module(**samples.tensors)
    measured(network, (0,))
    assert torch.equal(network.module(**samples.tensors), before)


@pytest.mark.parametrize("by_channel", [False, True])
def test_the_grid_reaches_both_ends_and_errs_by_half_a_step(by_channel: bool) -> None:
    values = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    flat = (lambda each: each.flatten(2)) if by_channel else (lambda each: each.flatten(1))
    for bits in FLOW_WIDTHS:
        found = rounded(values, bits, by_channel)
        step = (flat(values).amax(-1) - flat(values).amin(-1)) / (2**bits - 1)
        assert torch.allclose(flat(found).amax(-1), flat(values).amax(-1), atol=1e-5)
        assert (flat(found - values).abs().amax(-1) <= step / 2 + 1e-6).all()
    assert torch.equal(rounded(torch.ones(1, 2, 3), 4, by_channel), torch.ones(1, 2, 3))
