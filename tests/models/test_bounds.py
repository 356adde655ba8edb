"""Counts that no model has are refused before memory or time is spent on them."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from natprec import load
from natprec.errors import ModelError
from natprec.models.bounds import MOST_TENSORS, refuse_counts
from natprec.models.gguf_files import check_gguf
from natprec.models.loading import load_model
from natprec.models.model_files import weight_files

SECONDS = 10
"""Far more than a refusal takes, and far less than a billion layers."""


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"model_type": "qwen2", "num_hidden_layers": 10**9},  # makes a list of that length
        {"model_type": "gpt2", "n_layer": 10**9},
        {"model_type": "mixtral", "num_local_experts": 10**9},
        {"text_config": {"model_type": "llama", "num_hidden_layers": 10**9}},
    ],
    ids=str,
)
def test_a_billion_layers(tmp_path: Path, tiny_folder: Path, changes: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    described = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(described))
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"= 1000000000, and natprec takes at most \d+; .* get it from"):
        load_model(str(folder))
    described["quantization_config"] = {"config_groups": {}}
    (folder / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="= 1000000000"):
        load(folder)
    assert time.perf_counter() - start < SECONDS


def test_counts_of_real_models_pass() -> None:
    real = {"num_hidden_layers": 126, "n_routed_experts": 384, "max_window_layers": 70, "vocab_size": 10**9,
            "block_size": 10**9, "num_experts_per_tok": 8, "layer_types": ["full"] * 3, "rope_theta": 9**9}  # fmt: skip
    refuse_counts(real, "model")
    refuse_counts({"llama.block_count": 80, "llama.context_length": 10**9}, "file.gguf")


def test_a_header_of_400_000_tensors(tmp_path: Path, tiny_folder: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    entries = {f"t{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(400_000)}
    header = json.dumps(entries).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=f"lists 400000 tensors .* at most {MOST_TENSORS}"):
        weight_files(folder)
    assert time.perf_counter() - start < SECONDS


@pytest.mark.parametrize(("pairs", "words"), [([], "lists 400000"), ([("llama.block_count", 10**9)], "= 1000000000")])
def test_a_gguf_that_claims_too_much(tmp_path: Path, pairs: list[tuple[str, int]], words: str) -> None:
    file = tmp_path / "model.gguf"
    content = b"GGUF" + struct.pack("<IQQ", 3, 0 if pairs else 400_000, len(pairs))
    for key, value in pairs:
        content += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<II", 4, value)
    file.write_bytes(content + bytes(1_000_000))
    with pytest.raises(ModelError, match=words):
        check_gguf(file)
