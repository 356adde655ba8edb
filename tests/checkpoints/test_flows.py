"""Checkpoints with rounded activations: what is loaded computes what the plan says, to the bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import BudgetError
from natprec.formats import parse_activation
from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.pipeline import rounded
from natprec.rounding.flows import flows_rounded
from natprec.utils.progress import Stages
from tests.arrange import restore, snapshot, subject, tokens

QUIET = Stages(quiet=True)


@pytest.fixture(scope="module")
def made() -> Subject:
    return subject()


@pytest.fixture(scope="module", params=["vllm", "natprec"])
def measured(request: pytest.FixtureRequest, made: Subject) -> Measurement:
    return measure(made, tokens(8, 16), engine=request.param, group_size=32, sites="all", rounding="rtn")


@pytest.mark.parametrize("options", [{"activations": "8"}, {"activations": "auto", "kv": "8"}])
def test_a_loaded_checkpoint_rounds_as_planned(
    made: Subject, measured: Measurement, tmp_path: Path, options: dict[str, Any]
) -> None:
    plan = measured.solve(bits=8.8, eps=1.0, **options) if "auto" not in options.values() else None
    plan = plan or measured.solve(eps=0.004, **options)
    text, original = tokens(4, 16, seed=3), snapshot(made.model)
    codes = rounded.round_to_plan(made, plan, None, "rtn", QUIET)
    with torch.no_grad():
        weights_only = made.segmented.output(text)
        with flows_rounded(made.model, made.activations, plan):
            expected = made.segmented.output(text)
    rounded.write(made, plan, codes, tmp_path, QUIET)
    restore(made.model, original)
    loaded = load_quantized(tmp_path)
    with torch.no_grad():
        got = made.segmented.distortion.output(loaded, text)
    torch.testing.assert_close(got, expected)
    assert (weights_only - expected).abs().max() > 1e-4, "rounding activations must show"
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert all(
        group["input_activations"]["dynamic"]
        for group in config["config_groups"].values()
        if group["input_activations"]
    )
    assert ("kv_cache_scheme" in config) == ("kv" in options)


def test_a_cache_with_a_scale_for_each_head_is_read_back(made: Subject, tmp_path: Path) -> None:
    """As the library shapes it: (heads, 1, 1)."""
    plan = measure(made, tokens(8, 16), group_size=32, sites="all", rounding="rtn").solve(eps=1.0, kv="8")
    assert plan.cache is not None
    heads = made.model.config.num_key_value_heads
    by_head = {site: (reach, *[reach / 64] * (heads - 1)) for site, reach in plan.cache.largest.items()}
    choice = replace(plan.cache, format=parse_activation("fp8-head"), by_head=by_head)
    plan, ids, original = replace(plan, cache=choice), tokens(4, 16, seed=3), snapshot(made.model)
    codes = rounded.round_to_plan(made, plan, None, "rtn", QUIET)
    with torch.no_grad(), flows_rounded(made.model, made.activations, plan):
        expected = made.segmented.output(ids)
    rounded.write(made, plan, codes, tmp_path, QUIET)
    restore(made.model, original)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.shape for name, value in stored.items() if name.endswith(("k_scale", "v_scale"))} == {(heads, 1, 1)}
    assert heads > 1
    loaded = load_quantized(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(made.segmented.distortion.output(loaded, ids), expected)


def test_a_size_includes_the_scales_of_the_cache(made: Subject) -> None:
    found = measure(made, tokens(8, 16), group_size=32, sites="all", rounding="rtn")
    cheapest = found.solve(eps=1e6, kv="8").stored_bytes
    assert found.solve(max_size=cheapest, kv="8").stored_bytes == cheapest
    with pytest.raises(BudgetError, match=f"is below the cheapest plan, {cheapest} bytes"):
        found.solve(max_size=cheapest - 1, kv="8")


def test_w8a8_weights_are_int8_per_channel_for_vllm(made: Subject, tmp_path: Path) -> None:
    plan = measure(made, tokens(4, 16), group_size=32, sites="all", rounding="rtn").solve(bits=9, activations="8")
    eight = {fused_group for fused_group, choice in plan.inputs.items() if choice.bits == 8}
    wide = [
        choice.format for choice in plan.sites.values() if choice.fused_group in eight and choice.to_json()["bits"] == 8
    ]
    assert wide
    assert all(fmt is not None and fmt.name == "int8-channel" for fmt in wide)
    original = snapshot(made.model)
    codes = rounded.round_to_plan(made, plan, None, "rtn", QUIET)
    rounded.write(made, plan, codes, tmp_path, QUIET)
    restore(made.model, original)
    groups = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"]
    assert groups["int8-channel-int8-a8-token"]["format"] == "int-quantized"
