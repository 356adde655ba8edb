"""A checkpoint on disk, opened by plain transformers or by us, is the model that was quantized in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from natprec.checkpoints.compressed_tensors import write_weights
from natprec.checkpoints.dense_reader import load_quantized
from natprec.formats import CHANNEL, Format, engine_profile, integer
from natprec.measurement import Measurement
from natprec.measurement.beside import other_entries
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan
from natprec.solver.site_costs import named_bytes
from natprec.utils.atomic_files import folder_bytes
from tests.arrange import apply_plan, encoder, subject, tokens, write_checkpoint

TEXT = tokens(4, 24)


def plan_of(made: Subject, engine: str, group_size: int | None = 32, **target: Any) -> Plan:
    measured: Measurement = measure(made, tokens(4, 16, seed=9), engine=engine, group_size=group_size)
    return measured.solve(**(target or {"bits": 5.0}))


def written(folder: Path, made: Subject, plan: Plan, **options: Any) -> tuple[nn.Module, dict[str, QuantizedTensor]]:
    """The checkpoint in `folder`; the quantized model in memory and its codes."""
    quantized = apply_plan(made.segmented, made.sites, plan, None, "rtn", made.storage_dtype)
    write_checkpoint(folder, made, quantized, engine_profile(plan.engine), **options)
    return made.model, quantized


def plainly(folder: Path) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def assert_same(model: nn.Module, expected: nn.Module) -> None:
    found = model(input_ids=TEXT.ids, use_cache=False).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected(input_ids=TEXT.ids, use_cache=False).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group_size", [32, None, CHANNEL])
@pytest.mark.parametrize("engine", ["vllm", "transformers", "sglang"])
def test_plain_transformers_loads_it(engine: str, group_size: int | None, tied: bool, tmp_path: Path) -> None:
    made = subject(tie_word_embeddings=tied)
    model, quantized = written(tmp_path, made, plan_of(made, engine, group_size))
    assert ("model.embed_tokens" in quantized) == (engine == "transformers")
    assert_same(plainly(tmp_path), model)
    assert_same(load_quantized(tmp_path), model)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("group_size", [32, None, CHANNEL])
def test_our_loader_reads_zero_points_and_packed_embeddings(group_size: int | None, tied: bool, tmp_path: Path) -> None:
    made = subject(tie_word_embeddings=tied)
    model, quantized = written(tmp_path, made, plan_of(made, "natprec", group_size, bits=5.0, rounding="rtn"))
    assert any(not value.format.symmetric for value in quantized.values())
    assert "model.embed_tokens" in quantized
    assert_same(load_quantized(tmp_path), model)


@pytest.mark.parametrize("engine", ["vllm", "transformers", "natprec"])
def test_an_encoder_comes_back_with_its_biases(engine: str, tmp_path: Path) -> None:
    from transformers import AutoModel

    made = encoder()
    for parameter in made.model.parameters():  # biases too: zeros would hide a lost one
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    model, quantized = written(tmp_path, made, plan_of(made, engine))
    assert ("embeddings.word_embeddings" in quantized) == (engine != "vllm")
    expected = model(input_ids=TEXT.ids).last_hidden_state
    torch.testing.assert_close(
        load_quantized(tmp_path)(input_ids=TEXT.ids).last_hidden_state, expected, rtol=0, atol=1e-5
    )
    if engine != "natprec":
        plain = AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
        torch.testing.assert_close(plain(input_ids=TEXT.ids).last_hidden_state, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_width_survives(bits: int, symmetric: bool, tmp_path: Path) -> None:
    made = subject()
    plan = plan_of(made, "natprec" if not symmetric else "vllm")
    fmt = integer(bits, 32, symmetric)
    model, quantized = written(tmp_path, made, with_format(plan, fmt))
    assert {value.format for value in quantized.values()} == {fmt}
    assert_same(load_quantized(tmp_path), model)


def with_format(plan: Plan, fmt: Format) -> Plan:
    """The plan with one format wherever it has any."""
    return replace(plan, sites={n: replace(c, format=fmt if c.format else None) for n, c in plan.sites.items()})


def test_layer_of_eight_outputs_with_4_bit_zero_points(tmp_path: Path) -> None:
    """One int32 holds all zero points of a column: a router of eight experts, one narrow key head."""
    made = subject(num_attention_heads=8, num_key_value_heads=1, head_dim=8, hidden_size=64)
    model, quantized = written(tmp_path, made, with_format(plan_of(made, "natprec"), integer(4, 32, False)))
    assert quantized["model.layers.0.self_attn.k_proj"].codes.shape == (8, 64)
    assert_same(load_quantized(tmp_path), model)


@pytest.mark.parametrize("engine", ["vllm", "natprec"])
def test_shards(engine: str, tmp_path: Path) -> None:
    made = subject()
    model, _ = written(tmp_path, made, plan_of(made, engine), shard_bytes=4_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert {tmp_path / name for name in index["weight_map"].values()} == set(tmp_path.glob("*.safetensors"))
    assert_same(load_quantized(tmp_path), model)


@pytest.mark.parametrize("engine", ["vllm", "transformers", "natprec"])
def test_config(engine: str, tmp_path: Path) -> None:
    from compressed_tensors.quantization import QuantizationConfig

    made = subject()
    plan = plan_of(made, engine)
    _, quantized = written(tmp_path, made, plan)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == str(made.storage_dtype).removeprefix("torch.")
    described = config["quantization_config"]
    QuantizationConfig.model_validate(described)
    groups = described["config_groups"]
    assert all(group["format"] in {"pack-quantized", "int-quantized"} for group in groups.values())
    targets = [name for group in groups.values() for name in group["targets"]]
    assert sorted(targets) == sorted(use for site in made.sites if site.name in quantized for use in site.uses)
    assert sorted(described["ignore"]) == sorted(
        use for site in made.sites if site.name not in quantized for use in site.uses
    )
    for group in groups.values():
        for name in group["targets"]:
            site = name if name in quantized else "model.embed_tokens"
            assert group["weights"]["num_bits"] == quantized[site].format.bits
            assert group["weights"]["symmetric"] == quantized[site].format.symmetric


@pytest.mark.parametrize("engine", ["vllm", "transformers", "natprec"])
def test_forecast_of_the_size(engine: str, tiny_tokenizer: Any, tmp_path: Path) -> None:
    """What the folder holds is at most the forecast, but for what the quantization_config says of each format."""
    made = subject(tiny_tokenizer, vocab_size=512)
    measured = measure(made, tokens(4, 16, seed=9), engine=engine, group_size=32)
    plan = measured.solve(bits=7.0)
    written(tmp_path, made, plan)
    tensors = load_file(tmp_path / "model.safetensors")
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if not name.endswith("weight_shape"))
    named = named_bytes(measured, engine_profile(engine))
    assert stored == plan.stored_bytes - made.carried_bytes - named
    header = (tmp_path / "model.safetensors").stat().st_size - sum(tensor.nbytes for tensor in tensors.values())
    assert 0.6 <= header / (named + other_entries(made.model, made.sites)) <= 1
    groups = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["config_groups"]
    assert folder_bytes(tmp_path) - plan.stored_bytes < 700 * len(groups)


def test_the_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    """The library orders a file's metadata by chance."""
    tensors = {"b.weight": torch.arange(6).view(2, 3), "a.wéight": torch.ones(3)}
    found = set()
    for number in range(8):
        (tmp_path / str(number)).mkdir()
        write_weights(tmp_path / str(number), tensors, 1000)
        file = tmp_path / str(number) / "model.safetensors"
        found.add(file.read_bytes())
        assert all(torch.equal(value, tensors[name]) for name, value in load_file(file).items())
    assert len(found) == 1
    with safe_open(file, "pt") as opened:
        assert set(opened.metadata()) == {"crc32", "format"}
