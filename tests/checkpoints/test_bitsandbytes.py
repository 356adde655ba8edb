"""Checkpoints of bitsandbytes: its tensors without that library, and with it what it makes of them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from natprec.checkpoints.bitsandbytes import STATE, four_bit_tensors
from natprec.checkpoints.dense_reader import load_quantized
from natprec.checkpoints.four_bit_reader import is_four_bit
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.formats import engine_profile, parse_format
from natprec.measurement.measure import measure
from natprec.pipeline import api
from natprec.pipeline.request import for_engine
from natprec.quantizers import quantize
from natprec.runtime.load import load as natprec_load
from natprec.solver import Plan
from natprec.utils.installed import require
from tests.arrange import subject, tokens
from tests.run_command import natprec

installed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is an extra")
NAMES = ("nf4-g64", "nf4-g64-dq", "fp4-g64", "fp4-g128-dq", "nf4-g256-dq")


def unpacked(tensors: dict[str, Tensor]) -> Tensor:
    """By the description alone, without natprec's formats or bitsandbytes."""
    state = next(value for name, value in tensors.items() if STATE in name)
    said = json.loads(bytes(state.tolist()))
    own = {name.removeprefix("layer.weight").removeprefix("."): value for name, value in tensors.items()}
    codes = torch.stack([own[""][:, 0] >> 4, own[""][:, 0] & 15], 1).flatten().long()
    absmax = own["absmax"].float()
    if "nested_absmax" in own:
        factor = own["nested_absmax"].repeat_interleave(said["nested_blocksize"])[: absmax.numel()]
        absmax = own["nested_quant_map"][own["absmax"].long()] * factor + said["nested_offset"]
    values = own["quant_map"][codes] * absmax.repeat_interleave(said["blocksize"])
    return values.view(said["shape"])


@pytest.mark.parametrize("name", NAMES)
def test_tensors_describe_the_weight(name: str) -> None:
    value = quantize(torch.randn(96, 256), parse_format(name), torch.bfloat16)
    tensors = four_bit_tensors(["layer"], value, False, torch.bfloat16)
    assert torch.allclose(unpacked(tensors), value.dequantize(), atol=1e-6)
    forecast = engine_profile("bitsandbytes").stored_bytes("linear", value.format, 96, 256)
    stored = sum(each.numel() * each.element_size() for each in tensors.values())
    assert abs(stored - forecast) < 64


@installed
@pytest.mark.parametrize("name", NAMES)
def test_bitsandbytes_reads_what_is_written(name: str) -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    value = quantize(torch.randn(96, 256), parse_format(name), torch.bfloat16)
    tensors = four_bit_tensors(["layer"], value, False, torch.bfloat16)
    stats = {key.removeprefix("layer.weight."): each for key, each in tensors.items() if key != "layer.weight"}
    state = QuantState.from_dict(stats, device=torch.device("cpu"))
    state.dtype = torch.float32
    dense = dequantize_4bit(tensors["layer.weight"], state)
    assert torch.allclose(dense, value.dequantize(), rtol=1e-5, atol=1e-6)


@installed
@pytest.mark.parametrize("name", NAMES)
def test_scales_are_those_of_bitsandbytes(name: str) -> None:
    """Codes too where scales are not rounded; under double quantization natprec rounds to the stored scale."""
    from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise, quantize_4bit

    fmt = parse_format(name)
    weight = torch.randn(128, 256)
    value = quantize(weight, fmt, torch.bfloat16)
    codes, state = quantize_4bit(
        weight, blocksize=fmt.group_size, compress_statistics=fmt.doubly_quantized, quant_type=fmt.codebook.name
    )
    absmax = state.absmax
    if state.nested:
        absmax = dequantize_blockwise(absmax, state.state2) + state.offset
    assert torch.allclose(value.scale.flatten(), absmax, rtol=2e-3)
    theirs = (dequantize_4bit(codes, state) - weight).square().mean()
    ours = (value.dequantize() - weight).square().mean()
    assert ours <= theirs * (1 + 1e-6)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, api.Quantized]:
    """A small model with layers in several formats and at 16 bits."""
    own = for_engine(subject(hidden_size=128, intermediate_size=256), "bitsandbytes")
    config = QuantizeConfig("", engine="bitsandbytes", tokens=64, length=16)
    found = measure(own, tokens(8, 16), config, parts=1, data="made up")
    plan = found.solve(bits=6)
    assert {choice.format is None for choice in plan.sites.values()} == {True, False}
    out = tmp_path_factory.mktemp("made") / "out"
    quantized = api.apply(plan, own.model, None, tokens(8, 16))
    api.save(quantized, out)
    return out, quantized


def test_layers_at_16_bits_are_to_be_left_alone(made: tuple[Path, api.Quantized]) -> None:
    folder, quantized = made
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    left = {name for name, choice in quantized.plan.sites.items() if choice.format is None and "embed" not in name}
    assert said["quant_method"] == "bitsandbytes"
    assert set(said["llm_int8_skip_modules"]) == left | {"lm_head"}
    assert is_four_bit(folder)
    with pytest.raises(InputError, match="is one of bitsandbytes, which natprec's runtime has no kernels for"):
        natprec_load(folder)
    assert quantized.plan.bits_per_weight <= 6
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name.endswith((".safetensors", "config.json")))
    assert size == pytest.approx(quantized.plan.stored_bytes, rel=0.1)


@installed
def test_transformers_loads_it_with_bitsandbytes(made: tuple[Path, api.Quantized]) -> None:
    """Exactly in float32; as bitsandbytes hands it out, rounded to the model's bfloat16."""
    import bitsandbytes
    from transformers import AutoModelForCausalLM

    folder, quantized = made
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, value in quantized.codes.items():
        module = model.get_submodule(name)
        assert isinstance(module, bitsandbytes.nn.Linear4bit)
        module.compute_dtype = torch.float32
        expected = value.dequantize()
        state = module.weight.quant_state
        rounded = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
        assert rounded.dtype == torch.bfloat16
        assert float((rounded.float() - expected).norm() / expected.norm()) < 2.0**-8
        state.dtype = torch.float32
        dense = bitsandbytes.functional.dequantize_4bit(module.weight.data, state)
        assert float((dense - expected).abs().max() / expected.abs().max()) < 1e-6
    left = [name for name, choice in quantized.plan.sites.items() if choice.format is None and "embed" not in name]
    assert all(type(model.get_submodule(name)) is torch.nn.Linear for name in left)
    ids = torch.arange(32).view(2, 16)
    for parameter in model.parameters():  # what is not quantized was loaded as it is stored, in bfloat16
        parameter.data = parameter.data.float() if parameter.is_floating_point() else parameter.data
    model.train()  # else bitsandbytes multiplies in bfloat16 on CPUs that have such products
    with torch.no_grad():
        logits, expected = model(input_ids=ids).logits, quantized.model(input_ids=ids).logits
    assert float((logits - expected).norm() / expected.norm()) < 1e-3


@installed
def test_the_judge_sees_the_same_weights(made: tuple[Path, api.Quantized]) -> None:
    folder, quantized = made
    state = load_quantized(folder, "bitsandbytes").state_dict()
    for name, value in quantized.codes.items():
        assert torch.allclose(state[f"{name}.weight"], value.dequantize(), rtol=1e-5, atol=1e-6)


@installed
def test_quantize_writes_verifies_and_is_verified_again(tiny_folder: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = natprec(
        "quantize", "--model", tiny_folder, "--engine", "bitsandbytes", "--eps", 0.5, "--eps-bwd", 0.05, "--data",
        text_file,
        "--tokens", 512, "--sequence-length", 64, "--eval-tokens", 512, "--rounding", "rtn", "--out", out, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    said = json.loads(result.out)
    assert said["kl_mean"] <= 0.5
    plan = Plan.load(out / "plan.json")
    assert plan.engine == "bitsandbytes"
    again = natprec("verify", out, "--model", tiny_folder, "--eval-data", text_file, "--json")
    assert json.loads(again.out)["kl_mean"] == pytest.approx(said["kl_mean"], rel=0.2)
    (out / "plan.json").unlink()
    foreign = natprec("verify", out, "--model", tiny_folder, "--eval-data", text_file, "--eps", 0.5, "--json")
    assert foreign.code == 0, foreign.err


def test_a_package_that_is_not_there_is_named() -> None:
    require("torch", "nothing", "")
    with pytest.raises(InputError, match="nowhere is judged by it, and nowhere_at_all is not installed; run: pip"):
        require("nowhere_at_all", "nowhere is judged by it", "run: pip install it")
