"""Checkpoints in floats that are not what they say, or whose scales are none: named by whatever opens them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import ModelError
from natprec.formats import parse_activation, parse_format
from natprec.formats.compressed_tensors import arguments, container
from natprec.measurement.subject import Subject
from natprec.quantizers import QuantizedTensor
from natprec.runtime.load import load
from tests.checkpoints.test_float_formats import made_of, written

MODULE = "model.layers.1.mlp.down_proj"
OPENED = [load, load_quantized]


def spoilt(folder: Path, made: Subject, codes: Mapping[str, QuantizedTensor], change: Any, config: Any = None) -> Path:
    """A checkpoint whose tensors, and whose config groups, were changed."""
    written(folder, made, codes)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    if config is not None:
        whole = json.loads((folder / "config.json").read_text())
        groups = whole["quantization_config"]["config_groups"]
        (group,) = groups.values()
        groups["rest"] = {**group, "targets": [target for target in group["targets"] if target != MODULE]}
        config(group)
        if group["targets"] != [MODULE]:
            del groups["rest"]
        (folder / "config.json").write_text(json.dumps(whole))
    return folder


@pytest.mark.parametrize(
    ("name", "leaf", "value", "said"),
    [
        ("fp8-tensor", "weight_scale", 0.0, r"'weight_scale' of .* holds 0.0, and scales of fp8-tensor are positive"),
        ("fp8-channel", "weight_scale", float("inf"), "'weight_scale' of .* holds inf"),
        ("fp8-block128", "weight_scale", -1.0, "'weight_scale' of .* holds -1.0"),
        ("nvfp4", "weight_global_scale", 0.0, "'weight_global_scale' of .* holds 0.0"),
        ("nvfp4", "weight_global_scale", float("inf"), "'weight_global_scale' of .* holds inf"),
        ("nvfp4", "weight_scale", 0.0, "'weight_scale' of .* holds 0.0"),
        ("mxfp4", "weight_scale", 255, "'weight_scale' of .* holds nan"),
    ],
)
@pytest.mark.parametrize("opened", OPENED)
def test_scales_that_are_none(
    tmp_path: Path, tiny_tokenizer: Any, opened: Any, name: str, leaf: str, value: float, said: str
) -> None:
    made, codes = made_of(parse_format(name), tiny_tokenizer)

    def change(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[f"{MODULE}.{leaf}"]
        tensor.view(-1)[-1] = value

    with pytest.raises(ModelError, match=f"{said}.*again"):
        opened(spoilt(tmp_path, made, codes, change))


@pytest.mark.parametrize(
    ("name", "claimed", "said"),
    [
        ("fp8-channel", "int8-channel", rf"says int8-channel of '{MODULE}'.*holds floats of 8 bits \(E4M3\)"),
        ("fp8-channel", "nvfp4", rf"says nvfp4 of '{MODULE}'.*weight' of .* holds floats of 8 bits"),
        ("fp8-channel", "fp8-block128", rf"says fp8-block128 of '{MODULE}'.*holds scales of groups of 256"),
        ("fp8-channel", "mxfp8", rf"says mxfp8 of '{MODULE}'.*weight_scale' .*: BF16 .* in place of U8"),
        ("mxfp8", "fp8-channel", rf"says fp8-channel of '{MODULE}'.*holds scales that are powers of two: U8"),
        ("nvfp4", "mxfp4", rf"says mxfp4 of '{MODULE}'.*holds scales in floats of 8 bits \(E4M3\)"),
        ("mxfp4", "nvfp4", rf"says nvfp4 of '{MODULE}'.*holds scales that are powers of two"),
        ("mxfp4", "mxfp6", rf"says mxfp6 of '{MODULE}'.*holds codes of 4 bits"),
        ("mxfp6", "int4-g32", rf"says int4-g32 of '{MODULE}'.*holds codes of 6 bits: U8"),
        ("int4-g32", "mxfp4", rf"says mxfp4 of '{MODULE}'.*holds codes of 4 bits: I32"),
    ],
)
@pytest.mark.parametrize("opened", OPENED)
def test_a_config_of_another_format(
    tmp_path: Path, tiny_tokenizer: Any, opened: Any, name: str, claimed: str, said: str
) -> None:
    made, codes = made_of(parse_format(name), tiny_tokenizer)
    other = parse_format(claimed)

    def claim(group: dict[str, Any]) -> None:
        group.update(weights=arguments(other), format=container(other), targets=[MODULE])

    with pytest.raises(ModelError, match=f"config.json {said}.*quantize again"):
        opened(spoilt(tmp_path, made, codes, lambda tensors: None, claim))


@pytest.mark.parametrize("value", [0.0, float("inf"), None])
@pytest.mark.parametrize("opened", OPENED)
def test_scales_of_inputs_that_are_none(tmp_path: Path, tiny_tokenizer: Any, opened: Any, value: float | None) -> None:
    made, codes = made_of(parse_format("nvfp4"), tiny_tokenizer)
    name = f"{MODULE}.input_global_scale"

    def change(tensors: dict[str, Tensor]) -> None:
        tensors |= {
            f"{use}.input_global_scale": torch.ones(1)
            for site in made.sites
            if site.role == "linear"
            for use in site.uses
        }
        if value is None:
            del tensors[name]
        else:
            tensors[name] = torch.tensor([value])

    def claim(group: dict[str, Any]) -> None:
        group["input_activations"] = arguments(parse_activation("nvfp4"))

    said = f"has no tensor '{name}'" if value is None else f"'{name}' is .{value}., and must be one positive number"
    with pytest.raises(ModelError, match=f"{said}.*quantize again"):
        opened(spoilt(tmp_path, made, codes, change, claim))
