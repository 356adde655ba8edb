"""A loaded checkpoint computes what its weights, made dense, compute; in every engine's format, and on every kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from natprec import native
from natprec.checkpoints.dense_reader import load_quantized
from natprec.formats import CHANNEL, Format, engine_profile, integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize
from natprec.runtime.kernels.dispatch import KERNELS
from natprec.runtime.kernels.joined import Joined
from natprec.runtime.kernels.reference import quantize_tokens
from natprec.runtime.load import load
from tests.arrange import encoder, subject, tokens, write_checkpoint

IDS = tokens(2, 24).ids
EXACT, ROUNDED = 5e-4, 0.05
"""Largest difference of a logit over the largest logit: activations as int16, and as bfloat16."""


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dense(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What products of many tokens are computed in: the CPU's choice, but both can be had."""
    monkeypatch.setattr("natprec.runtime.kernels.linear.fast_dtype", lambda: request.param)
    return cast(torch.dtype, request.param)


def written(folder: Path, made: Subject, fmt: Format, engine: str) -> Path:
    """A checkpoint with this format wherever the engine has it; its embedding at the widest that it has."""
    profile = engine_profile(engine)
    folder.mkdir()
    quantized = {}
    for site in made.sites:
        fits = fmt if profile.runs(site.role, fmt) else integer(8, fmt.group_size, fmt.symmetric)
        if profile.runs(site.role, fits):
            quantized[site.name] = quantize(site_weight(made.model, site), fits, made.storage_dtype)
    write_checkpoint(folder, made, quantized, profile)
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_tokenizer: Any) -> Path:
    return written(tmp_path / "out", subject(tiny_tokenizer, vocab_size=512), integer(4, 32), "vllm")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("engine", "fmt"),
    [
        ("vllm", integer(3, 32)),
        ("vllm", integer(4, CHANNEL)),
        ("transformers", integer(5, 32)),
        ("natprec", integer(4, 32, False)),
        ("natprec", integer(6, CHANNEL, False)),
    ],
)
@torch.inference_mode()
def test_it_computes_what_the_dense_weights_do(
    engine: str, fmt: Format, tied: bool, tmp_path: Path, tiny_tokenizer: Any, dense: torch.dtype
) -> None:
    folder = written(tmp_path / "out", subject(tiny_tokenizer, tie_word_embeddings=tied), fmt, engine)
    expected = load_quantized(folder)(input_ids=IDS).logits
    size = float(expected.abs().max())
    for kernels in (KERNELS["cpu"], tuple(k for k in KERNELS["cpu"] if k.name != "planes")):
        runnable = load(folder, kernels=kernels)
        bound = EXACT if kernels == KERNELS["cpu"] and native.library()[0] else ROUNDED
        many = runnable(input_ids=IDS).logits
        few = runnable(input_ids=IDS[:1, :2]).logits
        one = runnable(input_ids=IDS[:1, :1]).logits
        assert (many - expected).abs().max() < (EXACT if dense == torch.float32 else ROUNDED) * size
        assert (few - expected[:1, :2]).abs().max() < bound * size
        assert (one - expected[:1, :1]).abs().max() < bound * size


def test_no_dense_weight_is_kept(checkpoint: Path) -> None:
    """Codes, scales and the 16-bit embedding are all there is, but for norms."""
    runnable = load(checkpoint)
    stored = sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    assert runnable.resident_bytes < 1.1 * stored
    assert not [module for module in runnable.model.modules() if type(module) in (nn.Linear, nn.Embedding)]
    assert {chosen.kernel for chosen in runnable.kernels.values()} <= {"planes", "int4pack", "half"}


def test_linears_with_one_input_are_one_product(checkpoint: Path) -> None:
    runnable = load(checkpoint)
    joined = [module for module in runnable.model.modules() if isinstance(module, Joined)]
    assert len(joined) == 2 * runnable.model.config.num_hidden_layers
    calls: list[int] = []
    joined[0].linear.register_forward_hook(lambda module, args, output: calls.append(1))
    runnable(input_ids=IDS[:1, :1])
    assert len(calls) == 1
    attention = runnable.model.model.layers[0].self_attn
    x, other = torch.randn(2, 1, 1, 32).unbind(0)  # other inputs for each: right, though slower
    first, second = attention.k_proj(x), attention.v_proj(other)
    assert torch.equal(first, attention.k_proj(x.clone()))
    assert torch.equal(second, attention.v_proj(other.clone()))


@torch.inference_mode()
def test_an_encoder_runs_too(tmp_path: Path, encoder_tokenizer: Any, dense: torch.dtype) -> None:
    made = encoder()
    made = replace(made, tokenizer=encoder_tokenizer)
    folder = written(tmp_path / "out", made, integer(4, 32), "transformers")
    expected = load_quantized(folder)(input_ids=IDS).last_hidden_state
    found = load(folder)(input_ids=IDS).last_hidden_state
    bound = EXACT if dense == torch.float32 else ROUNDED
    assert (found - expected).abs().max() < bound * expected.abs().max()


@torch.inference_mode()
def test_int8_inputs(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """As other quantizers write it: activations in int8, by token; the reference rounds them so before each Linear."""
    folder = written(tmp_path / "out", subject(tiny_tokenizer), integer(8, CHANNEL), "vllm")
    config = json.loads((folder / "config.json").read_text())
    inputs = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
    expected = load_quantized(folder)
    for group in config["quantization_config"]["config_groups"].values():
        group["input_activations"] = inputs
    (folder / "config.json").write_text(json.dumps(config))
    for name, module in expected.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(lambda _, args: (rounded(args[0]),))
    runnable = load(folder)
    for ids in (IDS, IDS[:1, :1]):
        reference = expected(input_ids=ids).logits
        assert (runnable(input_ids=ids).logits - reference).abs().max() < 0.02 * reference.abs().max()


def rounded(x: torch.Tensor) -> torch.Tensor:
    codes, scale = quantize_tokens(x)
    return codes * scale.unsqueeze(-1)


@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_what_lm_eval_calls(tied: bool, tmp_path: Path, tiny_tokenizer: Any) -> None:
    """Each method and attribute that HFLM (lm-eval 0.4.13) uses of a model that is given to it."""
    made = subject(tiny_tokenizer, vocab_size=512, tie_word_embeddings=tied)
    weights = sum(parameter.numel() for parameter in made.model.parameters())
    runnable = load(written(tmp_path / "out", made, integer(4, 32), "vllm"))
    model, ids = runnable.model, tokens(3, 12, 500).ids
    before = model(ids).logits
    assert isinstance(model, nn.Module)
    assert model.eval() is model
    model.tie_weights()
    assert torch.equal(model(ids).logits, before)
    assert model.device == torch.device("cpu")
    assert model.dtype == torch.float32
    assert model.num_parameters() == weights
    assert model.config.vocab_size == 512
    assert Path(model.name_or_path) == tmp_path / "out"
    with torch.autocast("cpu", dtype=None, enabled=False):
        options = {"use_cache": True, "do_sample": False, "pad_token_id": 1}
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_length=20, **options)
        padded = ids.clone()
        padded[0, :5] = 1
        mask = torch.ones_like(ids)
        mask[0, :5] = 0
        left = model.generate(input_ids=padded, attention_mask=mask, max_length=20, **options)
        alone = model.generate(input_ids=ids[:1, 5:], attention_mask=mask[:1, 5:], max_length=15, **options)
    assert torch.equal(whole[:, :12], ids)
    assert torch.equal(left[1:], whole[1:])
    assert torch.equal(left[0, 5 : 5 + alone.shape[1]], alone[0])
