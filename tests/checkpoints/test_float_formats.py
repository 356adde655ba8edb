"""Checkpoints in floating-point formats: what the library unpacks, and every loader, is what was rounded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from torch import Tensor

from natprec.checkpoints.compressed_tensors import (
    checkpoint_tensors,
    quantization_config,
    write_settings,
    write_weights,
)
from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.checkpoints.fixed_scales import input_scales
from natprec.checkpoints.packed_weights import packed, stored_as, unpacked
from natprec.formats import Format, engine_profile, integer
from natprec.formats.compressed_tensors import arguments, container
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.measurement.subject import Subject
from natprec.models.disk_names import DiskNames
from natprec.models.weight_sites import site_weight
from natprec.quantizers import Extent, QuantizedTensor, quantize
from natprec.runtime.load import load
from tests.arrange import subject, tokens

SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = tokens(2, 24)
VLLM = engine_profile("vllm")
LOGITS = 1e-3
"""Largest difference of a logit between file and memory, over the largest logit."""


def rounded(made: Subject, formats: Mapping[str, Format]) -> dict[str, QuantizedTensor]:
    """Linears to the nearest code, the outer scale of a fused group in common; the model has the rounded weights."""
    codes = {}
    for site in made.sites:
        fmt = formats.get(site.name)
        if fmt is None or site.role != "linear":
            continue
        group = [site_weight(made.model, other) for other in made.sites if other.fused_group == site.fused_group]
        shared = torch.stack([each.abs().max() for each in group]).max()
        weight = site_weight(made.model, site)
        codes[site.name] = quantize(weight, fmt, made.storage_dtype, Extent.of(weight, [fmt], shared))
    for name, value in codes.items():
        made.model.get_submodule(name).weight.data = value.dequantize()
    return codes


def written(
    folder: Path,
    made: Subject,
    codes: Mapping[str, QuantizedTensor],
    inputs: Mapping[str, Format] | None = None,
    largest: Mapping[str, float] | None = None,
) -> Path:
    """A checkpoint, with the fixed scales of its inputs."""
    folder.mkdir(exist_ok=True)
    names, dtype = DiskNames(made.model), made.storage_dtype
    tensors = checkpoint_tensors(made.model, made.sites, dict(codes), VLLM, dtype, inputs, names=names)
    tensors |= input_scales(made.sites, inputs or {}, largest or {}, dtype, names)
    write_weights(folder, tensors, 5_000_000_000)
    formats = {name: value.format for name, value in codes.items()}
    scheme = quantization_config(made.sites, formats, VLLM, inputs, None, names)
    write_settings(folder, made.model, made.tokenizer, scheme, dtype)
    return folder


def made_of(fmt: Format, tokenizer: Any = None, **more: Any) -> tuple[Subject, dict[str, QuantizedTensor]]:
    """A subject whose other weights its dtype holds, and its codes."""
    made = subject(tokenizer, **SIZES, **more)
    for parameter in made.model.parameters():
        parameter.data = parameter.data.to(made.storage_dtype).float()
    return made, rounded(made, {site.name: fmt for site in made.sites})


@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS.values(), ids=lambda fmt: fmt.name)
def test_the_library_unpacks_what_was_packed(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes by their bits, scales, and weights: to the last bit; zeros of both signs and the widest scales too."""
    monkeypatch.setattr("natprec.checkpoints.packed_weights.FLOATS", 100 * 256)  # rows in three parts
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(256, 256, generator=draw) * torch.logspace(-6, 3, 256).unsqueeze(1)
    weight[5], weight[:, 7], weight[200:, 128:] = 0, -0.0, 0
    value = quantize(weight, fmt, torch.bfloat16)
    stored = packed(["m"], value, False, torch.bfloat16)
    own = {name.removeprefix("m."): tensor for name, tensor in stored.items()}
    again = unpacked(fmt, (256, 256), own, "m")
    for mine, read in zip(
        (value.codes, value.scale, value.outer), (again.codes, again.scale, again.outer), strict=True
    ):
        assert (mine is None) == (read is None)
        assert mine is None or torch.equal(mine, read)
    scheme = QuantizationScheme.model_validate({"targets": ["m"], "weights": arguments(fmt), "format": container(fmt)})
    compressor = BaseCompressor.get_value_from_registry(container(fmt))
    exact = {name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor for name, tensor in own.items()}
    dense = compressor.decompress(exact, scheme)
    assert torch.equal(dense["weight"], value.dequantize().to(dense["weight"].dtype))
    assert set(own) == set(compressor.compression_param_names(scheme))
    # and what its own compressor makes of these weights and scales is the same file
    if value.outer is None:
        scales = {"weight_scale": dense["weight_scale"].data.float()}
    else:
        scales = {"weight_scale": own["weight_scale"].float(), "weight_global_scale": own["weight_global_scale"]}
    compressed = compressor.compress({"weight": value.dequantize(), **scales}, scheme)
    for leaf in ("weight", "weight_packed"):
        if leaf in own:
            found, mine = compressed[leaf].view(torch.uint8), own[leaf].view(torch.uint8)
            assert torch.equal(_without_sign_of_zero(found, fmt), _without_sign_of_zero(mine, fmt))
    assert torch.equal(compressed["weight_scale"].float(), own["weight_scale"].float())


def _without_sign_of_zero(stored: Tensor, fmt: Format) -> Tensor:
    """The library's rounding makes +0 of -0."""
    if fmt.bits == 6:
        words = stored.view(len(stored), -1, 3).int()
        word = words[..., 0] | words[..., 1] << 8 | words[..., 2] << 16
        codes = torch.stack([word >> shift & 63 for shift in (0, 6, 12, 18)], -1)
    else:
        codes = torch.stack([stored & 15, stored >> 4], -1).int() if fmt.bits == 4 else stored.int()
    half = 2 ** (fmt.bits - 1)
    return torch.where(codes == half, 0, codes)


@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS.values(), ids=lambda fmt: fmt.name)
@torch.no_grad()
def test_every_loader_computes_what_memory_does(fmt: Format, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """The judge, whole and by segment, and the runtime."""
    made, codes = made_of(fmt, tiny_tokenizer)
    folder = written(tmp_path, made, codes)
    described = json.loads((folder / "config.json").read_text())["quantization_config"]
    QuantizationConfig.model_validate(described)
    assert {group["format"] for group in described["config_groups"].values()} == {container(fmt)}
    expected = made.model(input_ids=IDS.ids).logits
    size = float(expected.abs().max())
    dense = load_quantized(folder)
    for name, value in codes.items():
        assert torch.equal(dense.get_submodule(name).weight, value.dequantize()), name
    segmented = open_quantized(folder, made.segmented, torch.device("cpu"))
    with segmented.weights.hold(segmented.model.parameters()):
        by_segment = segmented.output(IDS)
    runnable = load(folder)
    assert {chosen.kernel for name, chosen in runnable.kernels.items() if name in codes} == {"dequantize-floats"}
    stored = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert runnable.resident_bytes < 1.1 * stored
    for found in (dense(input_ids=IDS.ids).logits, by_segment, runnable(input_ids=IDS.ids[:, :2]).logits):
        assert (found - expected[:, : found.shape[1]]).abs().max() <= LOGITS * size


@pytest.mark.parametrize("fmt", [*FLOAT_WEIGHTS.values(), integer(4, 32)], ids=lambda fmt: fmt.name)
def test_shapes_are_known_beforehand(fmt: Format) -> None:
    value = quantize(torch.randn(200, 256, generator=torch.Generator().manual_seed(0)), fmt, torch.float16)
    found = {name.removeprefix("m."): tensor for name, tensor in packed(["m"], value, False, torch.float16).items()}
    expected = stored_as(fmt, (200, 256), False, torch.float16)
    assert {leaf: (each.dtype, each.shape) for leaf, each in found.items()} == {
        leaf: (each.dtype, each.shape) for leaf, each in expected.items()
    }
    stored = sum(each.nbytes for leaf, each in found.items() if leaf != "weight_shape")
    assert stored == fmt.stored_bytes(200, 256)


@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS.values(), ids=lambda fmt: fmt.name)
@torch.no_grad()
def test_plain_transformers_loads_it(fmt: Format, tmp_path: Path) -> None:
    """FP8 in float32; what the library makes dense in bfloat16 in that dtype: the same model, to the bit."""
    from transformers import AutoModelForCausalLM

    made, codes = made_of(fmt)
    folder = written(tmp_path, made, codes)
    plain = container(fmt) == "float-quantized"
    dtype = torch.float32 if plain else torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = AutoModelForCausalLM.from_config(made.model.config, dtype=dtype).eval()
    expected.load_state_dict(made.model.state_dict())
    assert torch.equal(loaded(input_ids=IDS.ids).logits, expected(input_ids=IDS.ids).logits)
    assert all(torch.equal(loaded.get_submodule(n).weight, each.dequantize().to(dtype)) for n, each in codes.items())
    if not plain:
        with pytest.raises(RuntimeError, match="dtype"):  # when that changes, docs/engines.md says too little
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(input_ids=IDS.ids)
