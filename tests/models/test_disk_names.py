"""Engines look for the names of the original's file: a checkpoint has these, also where modules differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from natprec.checkpoints.dense_reader import load_quantized
from natprec.models.disk_names import DiskNames
from tests.conftest import tiny_model
from tests.models.test_blocks import built
from tests.run_command import SMALL, natprec


def test_a_renamed_head_is_called_as_in_the_file() -> None:
    names = DiskNames(built("gpt-neox"))
    assert names.tensor("lm_head.weight") == "embed_out.weight"
    assert names.module("lm_head") == "embed_out"
    assert names.key_in_model("embed_out.weight_packed") == "lm_head.weight_packed"
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert names.tensor(name) == names.key_in_model(name) == name
    assert DiskNames(tiny_model()).tensor("lm_head.weight") == "lm_head.weight"


@pytest.mark.parametrize("engine", ["vllm", "transformers"])
@torch.no_grad()
def test_a_checkpoint_has_the_names_of_the_original(
    engine: str, tmp_path: Path, tiny_tokenizer: Any, text_file: Path
) -> None:
    from transformers import AutoModelForCausalLM

    original, made = tmp_path / "original", tmp_path / "made"
    model = built("gpt-neox")
    model.resize_token_embeddings(512)
    model.save_pretrained(original)
    tiny_tokenizer.save_pretrained(original)
    result = natprec(
        "quantize", "--model", original, "--data", text_file, *SMALL, "--bits", "8.9", "--engine", engine, "--out", made
    )
    assert result.code == 0, result.err
    before, after = (load_file(folder / "model.safetensors") for folder in (original, made))
    modules = {name.rpartition(".")[0] for name in before}
    assert {name.rpartition(".")[0] for name in after} == modules
    assert "embed_out" in modules
    ids = torch.arange(3, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32, trust_remote_code=False)
    ours = load_quantized(made, engine)
    torch.testing.assert_close(plain(input_ids=ids).logits, ours(input_ids=ids).logits, rtol=0, atol=1e-5)
    first = AutoModelForCausalLM.from_pretrained(original, dtype=torch.float32, trust_remote_code=False)
    assert (plain(input_ids=ids).logits - first(input_ids=ids).logits).abs().max() < 0.3
