"""`natprec check` on folders that natprec did not write: small tensors, and what config.json says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from natprec.engines.architectures import CLASS_TARGET
from natprec.formats import parse_activation, parse_format
from natprec.formats.compressed_tensors import arguments
from tests.run_command import natprec

BLOCK = {
    "self_attn.q_proj": (128, 64),
    "self_attn.k_proj": (64, 64),
    "self_attn.v_proj": (64, 64),
    "self_attn.o_proj": (64, 128),
    "mlp.gate_proj": (128, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}
LAYER = "model.layers.0."


def group(fmt: str, targets: list[str], inputs: str | None = None, container: str = "pack-quantized") -> dict[str, Any]:
    """A config group."""
    return {
        "targets": targets,
        "format": container,
        "weights": arguments(parse_format(fmt)),
        "input_activations": arguments(parse_activation(inputs)) if inputs else None,
    }


def packed(name: str, rows: int, columns: int, bits: int, size: int = 32) -> dict[str, torch.Tensor]:
    """Tensors of packed integers; their values do not matter."""
    return {
        f"{name}.weight_packed": torch.zeros(rows, -(-columns * bits // 32), dtype=torch.int32),
        f"{name}.weight_scale": torch.ones(rows, columns // size, dtype=torch.bfloat16),
        f"{name}.weight_shape": torch.tensor([rows, columns]),
    }


def checkpoint(
    folder: Path,
    groups: list[dict[str, Any]],
    widths: dict[str, int] | None = None,
    ignore: tuple[str, ...] = ("lm_head",),
    **config: Any,
) -> Path:
    """A llama of one block; `widths`: bits of each module's codes, 4 where nothing is said."""
    folder.mkdir(parents=True)
    widths = widths or {}
    tensors = {"model.norm.weight": torch.ones(64, dtype=torch.bfloat16)}
    for leaf, (rows, columns) in BLOCK.items():
        tensors |= packed(LAYER + leaf, rows, columns, widths.get(leaf, 4))
    for name in ("model.embed_tokens", "lm_head"):
        own = packed(name, 96, 64, widths[name]) if name in widths else {}
        tensors |= own or {f"{name}.weight": torch.ones(96, 64, dtype=torch.bfloat16)}
    save_file(tensors, folder / "model.safetensors")
    scheme = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "ignore": list(ignore),
        "config_groups": {f"group_{number}": each for number, each in enumerate(groups)},
    }
    described = {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": False} | config
    (folder / "config.json").write_text(json.dumps({**described, "quantization_config": scheme}))
    return folder


def checked(folder: Path, *options: str, code: int = 0) -> dict[str, dict[str, Any]]:
    """Layer → what --json says of it."""
    result = natprec("check", folder, "--engine", "vllm", "--json", *options)
    assert result.code == code, result.err
    found = json.loads(result.out)
    assert found["engine_version"]
    assert all(set(each) == {"name", "says", "runs", "kernel", "note"} for each in found["layers"])
    return {each["name"]: each for each in found["layers"]}


def test_layers_are_the_engines_and_in_its_arithmetic(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"])])
    found = checked(folder, "--gpu", "a100")
    assert list(found) == [
        "lm_head", "model.embed_tokens", f"{LAYER}mlp.down_proj", f"{LAYER}mlp.gate_up_proj",
        f"{LAYER}self_attn.qkv_proj", f"{LAYER}self_attn.o_proj",
    ]  # fmt: skip
    qkv = found[f"{LAYER}self_attn.qkv_proj"]
    assert (qkv["says"], qkv["runs"], qkv["kernel"]) == ("int4-g32", "int4-g32", "Marlin")
    assert found["model.embed_tokens"]["runs"] == found["model.embed_tokens"]["says"] == "16 bits"


def test_versions_that_differ_are_named_at_each_layer(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"])])
    found = checked(folder, "--gpu", "h100", "--engine-version", "0.25.1")
    assert {each["kernel"] for name, each in found.items() if name.startswith(LAYER)} == {"Marlin"}
    assert all("0.33.0: Humming" in each["note"] for name, each in found.items() if name.startswith(LAYER))


def test_inputs_that_stay_at_16_bits_are_told(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"], "a8-token")])
    found = checked(folder, "--gpu", "a100")[f"{LAYER}mlp.down_proj"]
    assert (found["says"], found["runs"]) == ("int4-g32/a8-token", "int4-g32")
    assert "its inputs stay at 16 bits" in found["note"]


def test_a_fused_set_of_two_widths_cannot_run(tmp_path: Path) -> None:
    groups = [
        group("int3-g32", [f"{LAYER}self_attn.k_proj"]),
        group("int4-g32", [LAYER + leaf for leaf in BLOCK if "k_proj" not in leaf]),
    ]
    folder = checkpoint(tmp_path / "a", groups, {"self_attn.k_proj": 3})
    found = checked(folder, "--gpu", "h100", code=3)[f"{LAYER}self_attn.qkv_proj"]
    assert found["runs"] is found["kernel"] is None
    assert "vLLM joins q_proj (int4-g32) and k_proj (int3-g32)" in found["note"]


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "MixtralForCausalLM"])
@pytest.mark.parametrize("target", ["model.embed_tokens", CLASS_TARGET])
def test_a_packed_embedding_by_architecture(tmp_path: Path, architecture: str, target: str) -> None:
    """Llama hands its embedding no name, Qwen2 one, Mixtral not even the config."""
    linears = group("int4-g32", [LAYER + leaf for leaf in BLOCK])
    groups = [linears, group("int4-g32", [target])]
    folder = checkpoint(tmp_path / "a", groups, {"model.embed_tokens": 4}, architectures=[architecture])
    runs = architecture == "Qwen2ForCausalLM" or (architecture == "LlamaForCausalLM" and target == CLASS_TARGET)
    found = checked(folder, "--gpu", "h100", code=0 if runs else 3)["model.embed_tokens"]
    assert found["runs"] == ("int4-g32" if runs else None)
    assert ("config to the embedding" in found["note"]) == (architecture == "MixtralForCausalLM")


@pytest.mark.parametrize(
    ("fmt", "bits", "tied", "why"),
    [
        ("int3-g32", 3, False, "3 bits are packed dense"),
        ("int4-g32-asym", 4, False, "zero points of an embedding are not read"),
        ("int4-g32", 4, True, "the head is tied to it"),
    ],
)
def test_embeddings_that_cannot_run(tmp_path: Path, fmt: str, bits: int, tied: bool, why: str) -> None:
    groups = [group("int4-g32", [LAYER + leaf for leaf in BLOCK]), group(fmt, [CLASS_TARGET])]
    folder = checkpoint(tmp_path / "a", groups, {"model.embed_tokens": bits}, tie_word_embeddings=tied)
    found = checked(folder, "--gpu", "h100", code=3)["model.embed_tokens"]
    assert found["runs"] is None
    assert why in found["note"]


def test_a_head_that_a_class_name_does_not_reach_is_dense_for_vllm(tmp_path: Path) -> None:
    """Its class is ParallelLMHead, of which 'Linear' is no part."""
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"])], {"lm_head": 4}, ignore=())
    assert "no target of config.json" in checked(folder, "--gpu", "h100", code=3)["lm_head"]["note"]
    named = checkpoint(tmp_path / "b", [group("int4-g32", ["Linear", "lm_head"])], {"lm_head": 4}, ignore=())
    assert checked(named, "--gpu", "h100")["lm_head"]["runs"] == "int4-g32"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--gpu", "h10"), "unknown gpu 'h10'; nearest: h100"),
        ((), "gpu None: vLLM chooses by the generation of one GPU"),
        (("--gpu", "any"), "gpu 'any': vLLM chooses by the generation of one GPU"),
        (("--gpu", "h100", "--engine-version", "0.1"), "the rules that were read are of vLLM 0.25.1, 0.33.0"),
        (("--engine", "sglang", "--gpu", "h100"), "engine 'sglang': its rules were not read"),
    ],
)
def test_bad_requests(tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"])])
    result = natprec("check", folder, *options)
    assert result.code == 2
    assert reason in result.reason


def test_what_is_no_such_checkpoint(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"])])
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (folder / "config.json").write_text(json.dumps(config))
    result = natprec("check", folder, "--gpu", "h100")
    assert (result.code, "says quant_method 'gptq'" in result.reason) == (2, True)
    assert natprec("check", tmp_path / "none", "--gpu", "h100").code == 2


def test_the_table_names_layers_with_a_note(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "a", [group("int4-g32", ["Linear"], "a8-token")])
    result = natprec("check", folder, "--gpu", "a100")
    assert result.code == 0
    assert "Marlin" in result.out
    assert "its inputs stay at 16 bits" in result.out


def test_transformers_says_what_it_does_not_load(tmp_path: Path) -> None:
    groups = [group("int4-g32", [LAYER + leaf for leaf in BLOCK]), group("int4-g32", [CLASS_TARGET])]
    folder = checkpoint(tmp_path / "a", groups, {"model.embed_tokens": 4})
    result = natprec("check", folder, "--engine", "transformers", "--json")
    assert result.code == 3
    runs = {each["name"]: each["runs"] for each in json.loads(result.out)["layers"]}
    assert runs["model.embed_tokens"] is None
    assert runs[f"{LAYER}mlp.down_proj"] == "int4-g32"
