"""A model in another tool's codes is read as what its codes mean, in memory and from disk; variants are refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.errors import ModelError
from natprec.models.foreign_codes import from_fp8, from_mxfp4
from natprec.models.loading import load_model, stored_elements
from tests import packers
from tests.conftest import tiny_model
from tests.run_command import SMALL, natprec

CONFIG = "quantization_config"
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [48, 48], "activation_scheme": "dynamic"}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
MLX: dict[str, Any] = {"bits": 4, "group_size": 32}
BNB: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": True}

KINDS: dict[str, tuple[Callable[[torch.Tensor], packers.Packed], dict[str, Any], str]] = {
    "fp8 blocks": (packers.fp8_blocks, {CONFIG: FP8}, "FP8"),
    "fp8 rows": (packers.fp8_rows, {CONFIG: {"quant_method": "fbgemm_fp8"}}, "FP8"),
    "fp8 modelopt": (packers.fp8_whole, {CONFIG: {"quant_method": "modelopt", "quant_algo": "FP8"}}, "FP8"),
    "nvfp4": (packers.nvfp4, {CONFIG: {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "NVFP4"),
    "gptq": (packers.gptq, {CONFIG: GPTQ}, "GPTQ, 4 bits"),
    "gptq order": (partial(packers.gptq, order=True), {CONFIG: GPTQ | {"desc_act": True}}, "GPTQ, 4 bits"),
    "gptq 3": (partial(packers.gptq, bits=3), {CONFIG: GPTQ | {"bits": 3}}, "GPTQ, 3 bits"),
    "gptq 8": (partial(packers.gptq, bits=8, version=2), {CONFIG: GPTQ | {"bits": 8, "checkpoint_format": "gptq_v2"}},
               "GPTQ, 8 bits"),
    "awq": (packers.awq, {CONFIG: AWQ}, "AWQ, 4 bits"),
    "mlx": (packers.mlx, {"quantization": MLX, CONFIG: MLX}, "MLX, 4 bits"),
    "mlx 6": (partial(packers.mlx, bits=6), {"quantization": MLX | {"bits": 6}}, "MLX, 6 bits"),
    "nf4": (packers.four_bits, {CONFIG: BNB}, "bitsandbytes NF4"),
    "nf4 nested": (partial(packers.four_bits, nested=True), {CONFIG: BNB}, "bitsandbytes NF4"),
    "int8": (packers.int8_rows, {CONFIG: {"quant_method": "bitsandbytes", "load_in_8bit": True}}, "bitsandbytes INT8"),
}  # fmt: skip


def packed(folder: Path, packer: Callable[[torch.Tensor], packers.Packed], said: dict[str, Any]) -> dict[str, Any]:
    """Pack all matrices of a folder's layers, and describe it; returns the dense weights that they mean."""
    file, config = folder / "model.safetensors", folder / "config.json"
    tensors, meant = load_file(file), {}
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        own, meant[name] = packer(tensors.pop(name).float())
        tensors |= {f"{name.removesuffix('weight')}{leaf}": value.contiguous() for leaf, value in own.items()}
    save_file(tensors, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | said))
    return meant


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_read_as_what_they_mean(folder: Path, kind: str) -> None:
    packer, said, label = KINDS[kind]
    dense = load_file(folder / "model.safetensors")
    meant = packed(folder, packer, said)
    assert len(meant) == 14
    for on_disk in (False, True):
        loaded = load_model(str(folder), on_disk=on_disk)
        assert (loaded.source_format, loaded.leftovers.left, dict(loaded.leftovers.tensors)) == (label, (), {})
        for name, parameter in loaded.model.named_parameters():
            expected = meant.get(name, dense[name]).float()
            assert torch.allclose(loaded.weights.original(name, parameter), expected, rtol=1e-6, atol=1e-8), name
        assert not any(hasattr(loaded.model.config, key) for key in (CONFIG, "quantization"))
    assert stored_elements(str(folder)) == sum(tensor.numel() for tensor in dense.values())
    assert loaded.source_bytes == (folder / "model.safetensors").stat().st_size


def test_packers_are_coarse_enough_to_show(folder: Path) -> None:
    """A test that packs exactly would pass whatever is read."""
    weight = load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    for packer, _, _ in KINDS.values():
        assert 1e-4 < float((packer(weight)[1] - weight).norm() / weight.norm()) < 0.4


def test_experts_of_gpt_oss(tmp_path: Path, tiny_tokenizer: Any) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=512, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=256,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = GptOssForCausalLM(config).eval()
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    with torch.no_grad():
        for name in [name for name in tensors if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            own, dense = packers.mxfp4(tensors.pop(name).float().transpose(1, 2).contiguous())
            model.get_parameter(name).copy_(dense)
            tensors |= {f"{name}_{leaf}": value for leaf, value in own.items()}
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    said = json.loads((tmp_path / "config.json").read_text()) | {CONFIG: {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    ids = torch.arange(2, 34)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        loaded = load_model(str(tmp_path))
        assert loaded.source_format == "MXFP4"
        assert torch.allclose(loaded.model(input_ids=ids).logits, expected, atol=1e-4)
    on_disk = load_model(str(tmp_path), on_disk=True)
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(on_disk.weights.original(name, parameter).float(), parameter), name


def test_as_transformers_unpacks() -> None:
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    own, _ = packers.mxfp4(torch.randn(2, 8, 64))
    theirs = convert_moe_packed_tensors(own["blocks"], own["scales"], dtype=torch.float32)
    assert torch.equal(from_mxfp4(own["blocks"], own["scales"]), theirs)
    own, _ = packers.fp8_blocks(torch.randn(256, 128), 128)
    reader = Fp8Dequantize(type("Quantizer", (), {"quantization_config": type("Said", (), FP8)()})())
    theirs = reader._dequantize_one(own["weight"], own["weight_scale_inv"])
    ours = from_fp8(own["weight"], own["weight_scale_inv"], block=(128, 128))
    assert torch.equal(ours.to(theirs.dtype), theirs)


def test_it_is_quantized_once_more_and_said(folder: Path, tmp_path: Path, text_file: Path) -> None:
    packed(folder, packers.fp8_blocks, {CONFIG: FP8})
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    for weights in ("memory", "disk"):
        out = tmp_path / weights
        done = natprec("quantize", "--model", folder, *SMALL, "--bits", "6", "--eval-tokens", "128",
                       "--rounding", "rtn", "--data", text_file, "--out", out, "--weights", weights)  # fmt: skip
        assert done.code == 0, done.err
        said = " ".join((done.out + done.err).split())
        assert "is quantized already: FP8, " in said
        assert "rounds its weights once more, and KL is against them" in said
        assert "of the file given" in said
        assert "hf_quant_config" not in said
        assert not (out / "hf_quant_config.json").exists()
        assert "fp8" not in (out / "config.json").read_text()
        assert natprec("verify", out, "--model", folder, "--eval-data", text_file, "--eval-tokens", "128").code == 0


def test_measuring_says_so_too(folder: Path, tmp_path: Path, text_file: Path) -> None:
    packed(folder, packers.awq, {CONFIG: AWQ})
    done = natprec("measure", "--model", folder, *SMALL, "--data", text_file, "--out", tmp_path / "m")
    assert (done.code, "is quantized already: AWQ, 4 bits, " in " ".join(done.err.split())) == (0, True), done.err


def test_draft_layers_are_carried_over_dense(folder: Path) -> None:
    own, meant = packers.fp8_blocks(torch.randn(64, 64))
    packed(folder, packers.fp8_blocks, {CONFIG: FP8})
    file = folder / "model.safetensors"
    save_file(load_file(file) | {f"mtp.fc.{leaf}": value for leaf, value in own.items()}, file, {"format": "pt"})
    leftovers = load_model(str(folder)).leftovers
    assert leftovers.nbytes == 64 * 64 * 2
    assert torch.equal(leftovers.read()["mtp.fc.weight"], meant.to(torch.bfloat16))


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        ("gptq", {"checkpoint_format": "marlin"}, "(gptq)"),
        ("gptq", {"bits": 5}, "(gptq)"),
        ("awq", {"version": "gemv"}, "(awq)"),
        ("awq", {"bits": 8}, "(awq)"),
        ("nvfp4", {"quant_method": "nvfp4_awq"}, "(nvfp4_awq)"),
        ("fp8 blocks", {"weight_block_size": None}, "(fp8)"),
        ("gptq", {"quant_method": "hqq"}, "(hqq)"),
    ],
)
def test_other_variants_are_refused_by_name(folder: Path, kind: str, change: dict[str, Any], word: str) -> None:
    packer, said, _ = KINDS[kind]
    packed(folder, packer, {CONFIG: said[CONFIG] | change})
    for on_disk in (False, True):
        with pytest.raises(ModelError, match=r"is already quantized.*use the original checkpoint") as caught:
            load_model(str(folder), on_disk=on_disk)
        assert word in str(caught.value)


def test_other_modes_of_mlx_are_refused(folder: Path) -> None:
    packed(folder, packers.mlx, {"quantization": MLX | {"mode": "mxfp4"}})
    with pytest.raises(ModelError, match=r"\(MLX\).*mlx_lm.convert --dequantize"):
        load_model(str(folder))


def test_a_tensor_that_nothing_applies_is_refused(folder: Path) -> None:
    """`pre_quant_scale` of Model Optimizer is a factor of what flows in: without it the model would be another."""
    packed(folder, packers.fp8_whole, {CONFIG: {"quant_method": "modelopt"}})
    file, module = folder / "model.safetensors", "model.layers.1.mlp.up_proj"
    save_file(load_file(file) | {f"{module}.pre_quant_scale": torch.ones(64)}, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"is already quantized .tensor '{module}.weight"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("kind", "leaf", "said"),
    [
        ("fp8 blocks", "weight_scale_inv", "in place of"),
        ("nvfp4", "weight_scale", "in place of"),
        ("gptq", "scales", "in place of"),
        ("gptq", "g_idx", "in place of"),
        ("gptq", "qzeros", "does not fit"),
        ("awq", "scales", "in place of"),
        ("awq", "qzeros", "does not fit"),
        ("mlx", "biases", "in place of"),
        ("nf4", "weight.absmax", "does not fit"),
        ("nf4", "weight.quant_map", "does not fit"),
        ("nf4", "weight.quant_state.bitsandbytes__nf4", "does not fit"),
        ("int8", "SCB", "does not fit"),
    ],
)
def test_parts_that_do_not_fit_together(folder: Path, kind: str, leaf: str, said: str) -> None:
    packer, description, _ = KINDS[kind]
    packed(folder, packer, description)
    file = folder / "model.safetensors"
    tensors, name = load_file(file), f"model.layers.0.mlp.up_proj.{leaf}"
    tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=f"model.layers.0.mlp.up_proj.*{said}.*download it again, or use the original"):
        load_model(str(folder))


def test_groups_beyond_the_last(folder: Path) -> None:
    packed(folder, packers.gptq, {CONFIG: GPTQ})
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.g_idx"] += 9
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match="does not fit"):
        load_model(str(folder))


def test_the_model_is_as_large_as_it_was(folder: Path) -> None:
    packed(folder, packers.gptq, {CONFIG: GPTQ})
    assert stored_elements(str(folder)) == sum(each.numel() for each in tiny_model().parameters())
