"""GPTQ's and AWQ's containers are read as their definitions say: packed here code by code, and judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from natprec.checkpoints.int32_packed import container_of, weight_of
from tests.run_command import natprec

ROWS, COLUMNS, GROUP = 64, 96, 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ: which row's code the lowest, the next … four bits of an int32 hold."""


def bits_of(values: list[int], bits: int) -> list[int]:
    """A list of codes as int32 words, as a stream of bits: AutoGPTQ's rule, 3 bits included."""
    whole = sum(value << (place * bits) for place, value in enumerate(values))
    words = [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(len(values) * bits // 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in words]


def down(codes: Tensor, bits: int) -> Tensor:
    """(n, m) → (n · bits / 32, m)."""
    return torch.tensor([bits_of(column, bits) for column in codes.T.tolist()], dtype=torch.int32).T.contiguous()


def packed(codes: Tensor, zeros: Tensor, scales: Tensor, bits: int, container: str, shift: int) -> dict[str, Tensor]:
    """Codes (rows, columns), zero points and scales (rows, groups) as a container stores them."""
    stored = {"scales": scales.T.half().contiguous()}
    if container == "gptq":
        return stored | {"qweight": down(codes.T, bits), "qzeros": down((zeros - shift), bits).T.contiguous()}
    order = [8 * (row // 8) + AWQ_ORDER[row % 8] for row in range(len(codes))]
    return stored | {"qweight": down(codes[order], 4).T.contiguous(), "qzeros": down(zeros[order], 4).T.contiguous()}


@pytest.mark.parametrize(("container", "bits"), [("gptq", 2), ("gptq", 3), ("gptq", 4), ("gptq", 8), ("awq", 4)])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_weights_are_scale_times_code_less_zero_point(container: str, bits: int, version: str) -> None:
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(2**bits, (ROWS, COLUMNS), generator=draw)
    zeros = torch.randint(1, 2**bits, (ROWS, COLUMNS // GROUP), generator=draw)
    scales = (torch.rand(ROWS, COLUMNS // GROUP, generator=draw) + 0.1).half().float()
    described = {"quant_method": container, "bits": bits, "group_size": GROUP, "checkpoint_format": version}
    own = packed(codes, zeros, scales, bits, container, 1 if version == "gptq" else 0)
    expected = (codes - zeros.repeat_interleave(GROUP, 1)) * scales.repeat_interleave(GROUP, 1)
    assert torch.equal(weight_of(own, described), expected)
    if container == "gptq":
        order = torch.randperm(COLUMNS, generator=draw)
        group = torch.arange(COLUMNS)[order] // GROUP  # columns in another order, as with desc_act
        own = packed(codes[:, order], zeros, scales, bits, container, 1 if version == "gptq" else 0)
        assert torch.equal(weight_of(own | {"g_idx": group.int()}, described), expected[:, order])


def test_what_else_is_left_to_transformers() -> None:
    assert container_of({"quant_method": "gptq", "bits": 4}) == "gptq"
    assert container_of({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}) == "gptq"
    for other in (
        {"quant_method": "awq", "bits": 4, "version": "gemv"},
        {"quant_method": "gptq", "bits": 5},
        {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round", "extra_config": {"lm_head": {}}},
        {"quant_method": "bitsandbytes"},
        {},
    ):
        assert container_of(other) is None


@pytest.mark.parametrize("container", ["gptq", "awq"])
def test_verify_judges_such_a_folder_as_the_weights_it_stands_for(
    container: str, tmp_path: Path, tiny_folder: Path, text_file: Path
) -> None:
    """Beside a folder that holds the same weights as floats."""
    theirs, plain = (Path(shutil.copytree(tiny_folder, tmp_path / name)) for name in ("theirs", "plain"))
    stored: dict[str, Any] = load_file(tiny_folder / "model.safetensors")
    dense, codes = dict(stored), dict(stored)
    draw = torch.Generator().manual_seed(0)
    for name, weight in stored.items():
        if "_proj" not in name:
            continue
        module, groups = name.removesuffix("weight"), weight.shape[1] // GROUP
        scales = (weight.view(len(weight), groups, -1).abs().amax(-1) / 7).half().float()
        zeros = torch.randint(7, 10, scales.shape, generator=draw)
        wide = scales.repeat_interleave(GROUP, 1), zeros.repeat_interleave(GROUP, 1)
        code = (weight / wide[0] + wide[1]).round().clamp(0, 15).long()
        dense[name] = (code - wide[1]) * wide[0]
        del codes[name]
        codes |= {module + part: value for part, value in packed(code, zeros, scales, 4, container, 1).items()}
    save_file(dense, plain / "model.safetensors", {"format": "pt"})
    save_file(codes, theirs / "model.safetensors", {"format": "pt"})
    config = json.loads((theirs / "config.json").read_text())
    config["quantization_config"] = {"quant_method": container, "bits": 4, "group_size": GROUP, "version": "gemm"}
    (theirs / "config.json").write_text(json.dumps(config))
    found = []
    for folder in (theirs, plain):
        done = natprec("verify", folder, "--model", tiny_folder, "--eval-data", text_file, "--eval-tokens", 512,
                       "--sequence-length", 64, "--json")  # fmt: skip
        assert done.code == 0, done.err
        found.append(json.loads(done.out))
    assert found[0]["kl_mean"] == pytest.approx(found[1]["kl_mean"], rel=1e-3)
    assert found[0]["kl_mean"] > 1e-6
    assert 4 < found[0]["bits_per_weight"] < 5 < found[1]["bits_per_weight"]
