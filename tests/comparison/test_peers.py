"""The real peers on a tiny model, where they are installed: set NATPREC_PEERS to an interpreter that has them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from natprec.comparison.methods import METHODS
from natprec.comparison.peers.worker import load_peer
from natprec.comparison.processes import FIND
from tests.conftest import tiny_model
from tests.run_command import natprec

PYTHON = os.environ.get("NATPREC_PEERS", sys.executable)
UNIFORM = ["rtn", "gptq", "awq", "smoothquant"]
FLOATS = {"fp8-dynamic": (8, 8.2), "nvfp4a16": (4.5, 4.51), "nvfp4": (4.5, 4.52), "mxfp4": (4.25, 4.26)}
"""Bits of a stored weight; NVFP4's have a scale for inputs beside them."""
PEERS = [*UNIFORM, "autoround", "modelopt", "nf4", "int8", *FLOATS, "modelopt-float", "gptq-whole"]


def installed(method: str) -> bool:
    return subprocess.run([PYTHON, "-c", FIND, METHODS[method].module], check=False).returncode == 0


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, text_file: Path) -> dict[str, Any]:
    names = [name for name in PEERS if installed(name)]
    if not names:
        pytest.skip("no peer is installed: pip install 'natprec[baselines]', or set NATPREC_PEERS")
    folder = tmp_path_factory.mktemp("models") / "wide"  # groups of 64 as bitsandbytes has them
    tiny_model(hidden_size=128, intermediate_size=256, num_attention_heads=2).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    result = natprec(
        "compare", "--model", folder, "--data", text_file, "--tokens", "512", "--eval-tokens", "512",
        "--sequence-length", "64", "--iterations", "2", "--methods", ",".join([*names, "natprec"]),
        "--python", PYTHON, "--json",
    )  # fmt: skip
    assert result.code == 0, result.err
    return {row["method"]: row for row in json.loads(result.out)["rows"]}


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_quantizes(name: str, rows: dict[str, Any]) -> None:
    if name not in rows:
        pytest.skip(f"{METHODS[name].package} is not installed")
    row = rows[name]
    assert row["status"] == "ok"
    assert 0 < row["kl_mean"] < 0.05
    low, high = FLOATS.get(name, (8, 8.5) if name == "int8" else (4, 4.6))
    assert low < row["bits_per_weight"] < high


def test_uniform_checkpoints_have_the_same_bytes_and_natprec_no_more(rows: dict[str, Any]) -> None:
    if "gptq" not in rows:
        pytest.skip("llmcompressor is not installed")
    assert len({rows[name]["stored_bytes"] for name in UNIFORM}) == 1
    assert rows["natprec"]["stored_bytes"] <= rows["gptq"]["stored_bytes"]


def test_codes_of_a_byte_each_are_read_back(tmp_path: Path) -> None:
    """llm-compressor writes 4-bit weights so beside rounded activations."""
    codes = torch.randint(-8, 8, (3, 8), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    scale, zero = torch.rand(3, 2) + 0.5, torch.tensor([[1, -2], [0, 3], [5, -8]], dtype=torch.int8)
    tensors = {"a.weight": codes, "a.weight_scale": scale, "a.weight_zero_point": zero, "norm.weight": torch.ones(2)}
    save_file(tensors, tmp_path / "model.safetensors")
    weights = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 4}
    group = {"targets": ["Linear"], "format": "int-quantized", "weights": weights}
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"config_groups": {"group_0": group}}}))
    found = dict(load_peer(METHODS["gptq"].file).dense(None, None, tmp_path))
    assert found.keys() == {"a.weight", "norm.weight"}
    grouped = (codes.view(3, 2, 4).float() - zero.unsqueeze(2)) * scale.unsqueeze(2)
    torch.testing.assert_close(found["a.weight"], grouped.view(3, 8))
