"""What is wrong with a checkpoint has a name: the file, the tensor, the kernel that would be needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from natprec.errors import InputError, ModelError
from natprec.formats import integer
from natprec.runtime.load import load
from tests.arrange import subject
from tests.runtime.test_load import written

TENSOR = "model.layers.1.mlp.down_proj.weight_packed"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    return written(tmp_path_factory.mktemp("good") / "out", subject(tiny_tokenizer), integer(4, 32), "vllm")


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "copy"))


def header(file: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), 8 + length


def test_a_flipped_bit_has_a_file_and_a_tensor(folder: Path) -> None:
    file = folder / "model.safetensors"
    entries, start = header(file)
    content = bytearray(file.read_bytes())
    content[start + entries[TENSOR]["data_offsets"][0] + 5] ^= 4
    file.write_bytes(content)
    with pytest.raises(ModelError, match=rf"'{TENSOR}' of '.*model.safetensors' is damaged: its CRC-32 is .* again"):
        load(folder)


def test_a_truncated_file_has_a_tensor_too(folder: Path) -> None:
    file = folder / "model.safetensors"
    entries, start = header(file)
    file.write_bytes(file.read_bytes()[: start + entries[TENSOR]["data_offsets"][0] + 8])
    with pytest.raises(ModelError, match=rf"model.safetensors' .*truncated.*tensor '{TENSOR}' is cut off"):
        load(folder)


def test_a_missing_file_and_a_missing_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    scale = "model.layers.0.self_attn.q_proj.weight_scale"
    save_file({k: v for k, v in tensors.items() if k != scale}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks tensor '{scale}'; download"):
        load(folder)
    save_file(tensors | {scale: tensors[scale] * float("nan")}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"q_proj.weight_scale' of .*: int4-g32 needs 32 × 1 finite"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"it needs model.safetensors"):
        load(folder)
    with pytest.raises(InputError, match=r"no config.json; give the --out folder"):
        load(folder / "nowhere")


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("weights", {"type": "float", "num_bits": 8}, "no format for weights of .*num_bits 8, .*type float"),
        ("weights", {"strategy": "block"}, "no format for weights of .*strategy block"),
        ("input_activations", {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True},
         "activations in a4-token; kernels exist for a8-token"),
    ],
)  # fmt: skip
def test_a_scheme_without_a_kernel_says_so(folder: Path, part: str, change: dict[str, Any], said: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group[part] = {**(group[part] or {}), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{said}.*; it needs a kernel of its own: run it in vLLM"):
        load(folder)


def test_targets_may_be_classes_and_expressions(folder: Path) -> None:
    """As llm-compressor writes them."""
    config = json.loads((folder / "config.json").read_text())
    groups = config["quantization_config"]["config_groups"]
    for targets in (["Linear"], ["re:.*proj$"]):
        groups["int4-g32"]["targets"] = targets
        config["quantization_config"]["ignore"] = ["lm_head"]
        (folder / "config.json").write_text(json.dumps(config))
        formats = {name: chosen.format for name, chosen in load(folder).kernels.items()}
        assert formats["model.layers.0.self_attn.q_proj"] == "int4-g32"
        assert formats["lm_head"] == formats["model.embed_tokens"] == "bfloat16"
