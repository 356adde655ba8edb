"""Inputs rounded to floats: config.json and the fixed scales beside it say all that a loader needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from natprec.checkpoints.dense_reader import load_quantized
from natprec.comparison.candidates import linears_only, with_formats
from natprec.formats import engine_profile, parse_activation, parse_format
from natprec.formats.compressed_tensors import container
from natprec.pipeline import api
from natprec.quantizers.activations import fixed_scale, round_activations
from natprec.runtime.load import load
from natprec.solver.site_costs import named_bytes
from tests.arrange import subject, tokens
from tests.checkpoints.test_float_formats import IDS, LOGITS, made_of, written

PAIRS = [
    ("fp8-channel", "fp8-token"), ("fp8-tensor", "fp8-tensor"), ("fp8-block128", "fp8-g128"), ("nvfp4", "nvfp4"),
    ("mxfp4", "mxfp4"), ("mxfp6", "mxfp8"), ("mxfp8", "mxfp8"), ("int4-g128", "fp8-token"), ("nvfp4", "fp8-token"),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "inputs"), PAIRS)
@torch.no_grad()
def test_inputs_are_rounded_as_the_file_says(weights: str, inputs: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    made, codes = made_of(parse_format(weights), tiny_tokenizer)
    fmt = parse_activation(inputs)
    fused_groups = {site.fused_group for site in made.sites if site.role == "linear"}
    largest = {fused_group: 3.0 + number for number, fused_group in enumerate(sorted(fused_groups))}
    folder = written(tmp_path, made, codes, dict.fromkeys(fused_groups, fmt), largest)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["format"] == container(parse_format(weights))
    stored = {name for name in load_file(folder / "model.safetensors") if ".input_" in name and name.endswith("_scale")}
    linears = [use for site in made.sites if site.role == "linear" for use in site.uses]
    leaf = "input_global_scale" if inputs == "nvfp4" else "input_scale"
    assert stored == ({f"{use}.{leaf}" for use in linears} if fmt.fixed else set())
    plain = made.model(input_ids=IDS.ids).logits
    for site in (site for site in made.sites if site.role == "linear"):
        scale = fixed_scale(fmt, torch.tensor([largest[site.fused_group]])) if fmt.fixed else None
        made.model.get_submodule(site.name).register_forward_pre_hook(
            lambda _, args, scale=scale: (round_activations(args[0], fmt, scale),)
        )
    expected = made.model(input_ids=IDS.ids).logits
    size = float(expected.abs().max())
    assert (expected - plain).abs().max() > 2 * LOGITS * size, "rounding inputs must show"
    assert (load_quantized(folder)(input_ids=IDS.ids).logits - expected).abs().max() <= 1e-5 * size
    runnable = load(folder)
    assert all(runnable.replaced.blocks.values()), "block.c rounds no inputs to floats"
    runs = runnable(input_ids=IDS.ids[:1, :2]).logits
    assert (
        runs - made.model(input_ids=IDS.ids[:1, :2]).logits
    ).abs().max() <= 0.02 * size  # a code may be the next one


@pytest.mark.parametrize(("weights", "inputs", "bits"), [("nvfp4", "nvfp4", "4"), ("fp8-tensor", "fp8-tensor", "8")])
def test_fixed_scales_of_inputs_are_in_the_forecast(tmp_path: Path, weights: str, inputs: str, bits: str) -> None:
    """What the plan says of the file's tensors is what they take: weights, their scales, and those of inputs."""
    own = subject(vocab_size=512)
    text = tokens(8, 16, 512)
    measured = api.measure(
        own.model, None, text, group_size=32, length=16, sites="all", gpu="sm100", untested=True, rounding="rtn"
    )
    kept = with_formats(linears_only(measured), (weights,))
    plan = kept.solve(bits=10.0, activations=bits)
    assert {choice.format.name for choice in plan.inputs.values() if choice.format} == {inputs}
    api.save(api.apply(plan, own.model, None, text), tmp_path / "made")
    tensors = load_file(tmp_path / "made" / "model.safetensors")
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    scales = [tensor for name, tensor in tensors.items() if name.endswith(("input_scale", "input_global_scale"))]
    assert len(scales) == 7 * own.model.config.num_hidden_layers
    named = named_bytes(kept, engine_profile("vllm"))
    assert plan.stored_bytes - own.carried_bytes - named == stored
