"""A config.json that says another format than the tensors hold is refused by both names, wherever it is opened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.checkpoints.dense_reader import load_quantized, open_quantized
from natprec.errors import ModelError
from natprec.formats import Format, integer, parse_format
from natprec.measurement.subject import Subject
from natprec.models.headers import Header
from natprec.models.stored_codes import refuse_other_format
from natprec.runtime.load import load
from tests.arrange import subject
from tests.runtime.test_load import written

MODULE = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def made(tiny_tokenizer: Any) -> Subject:
    return subject(tiny_tokenizer)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, made: Subject) -> Path:
    return written(tmp_path_factory.mktemp("good") / "out", made, integer(4, 32), "vllm")


@pytest.fixture(params=["runtime", "judge", "judge by segment", "transformers"])
def opened(request: pytest.FixtureRequest, made: Subject) -> Callable[[Path], Any]:
    ways: dict[str, Callable[[Path], Any]] = {
        "runtime": load,
        "judge": load_quantized,
        "judge by segment": lambda folder: open_quantized(folder, made.segmented, torch.device("cpu")),
        "transformers": lambda folder: load_quantized(folder, "transformers"),
    }
    return ways[request.param]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_bits": 8}, rf"says int8-g32 of '{MODULE}'.*weight_packed' of '.*' holds codes of 4 bits: I32 \(32, 8\)"),
        ({"num_bits": 3}, rf"says int3-g32 of '{MODULE}'.*holds codes of 4 bits: .* in place of I32 \(32, 6\)"),
        ({"group_size": 64}, rf"says int4-g64 of '{MODULE}'.*weight_scale' of '.*' holds scales of groups of 32"),
        ({"strategy": "channel", "group_size": None}, rf"says int4-channel of '{MODULE}'.*scales of groups of 32"),
    ],
)
def test_a_config_of_another_format(
    good: Path, tmp_path: Path, opened: Callable[[Path], Any], change: dict[str, Any], said: str
) -> None:
    opened(good)
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    whole, group["targets"] = group["targets"], [MODULE]
    groups = config["quantization_config"]["config_groups"]
    groups["rest"] = {**group, "targets": [target for target in whole if target != MODULE]}
    group["weights"] = {**group["weights"], **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"config.json {said}.*put the config.json of these weights back, or quantize"):
        opened(folder)


def test_codes_beyond_their_format(good: Path, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """One to a byte, so that shapes say nothing."""
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"{MODULE}.weight_packed"]
    tensors[f"{MODULE}.weight"] = torch.full((32, 64), 9, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "plan.json").unlink(missing_ok=True)
    with pytest.raises(ModelError, match=rf"int4-g32 of '{MODULE}', whose codes go from -8 to 7, .* from 9 to 9"):
        load(folder)


@pytest.mark.parametrize(
    ("fmt", "leaf", "found", "said"),
    [
        (integer(8, None), "weight", ("F8_E4M3", (4, 64)), r"int8-channel .* holds floats of 8 bits \(E4M3\)"),
        (parse_format("fp8-channel"), "weight", ("I8", (4, 64)), r"fp8-channel .* holds integers of 8 bits: I8"),
        (parse_format("nvfp4"), "weight_packed", ("I32", (4, 8)), r"nvfp4 .* holds codes of 4 bits: .* U8 \(4, 32\)"),
        (integer(4, 32), "weight", ("BF16", (4, 64)), r"int4-g32 .* holds weights that are not quantized: BF16"),
        (integer(4, 32), "weight_packed", ("I32", (5, 8)), r"int4-g32 .* holds something else: I32 \(5, 8\)"),
        (integer(8, None), "weight_scale", ("F16", (4, 2)), r"int8-channel .* holds scales of groups of 32"),
        (integer(8, 32), "weight_scale", ("F16", (3, 3)), r"int8-g32 .* holds other scales: F16 \(3, 3\)"),
    ],
)  # fmt: skip
def test_each_kind_of_tensor_has_a_name(fmt: Format, leaf: str, found: tuple[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=f"config.json says {said}"):
        refuse_other_format("m", fmt, (4, 64), {leaf: Header(Path("file"), *found)})


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("int8-channel", {"weight": ("I8", (4, 64)), "weight_scale": ("BF16", (4, 1))}),
        ("int8-tensor", {"weight": ("I8", (4, 64)), "weight_scale": ("BF16", (1,))}),
        ("int3-g32", {"weight_packed": ("I32", (4, 6)), "weight_scale": ("BF16", (4, 2))}),
        ("fp8-channel", {"weight": ("F8_E4M3", (4, 64)), "weight_scale": ("F32", (4, 1))}),
        ("nvfp4", {"weight_packed": ("U8", (4, 32)), "weight_scale": ("F8_E4M3", (4, 4))}),
    ],
)
def test_what_belongs_together_passes(name: str, tensors: dict[str, tuple[str, Any]]) -> None:
    headers = {leaf: Header(Path("file"), *found) for leaf, found in tensors.items()}
    refuse_other_format("m", parse_format(name), (4, 64), headers)
