"""Weights in floating-point codes run on the CPU and in Triton, from the bytes that the format stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from natprec.formats import Format, parse_format
from natprec.formats.presets import FLOAT_WEIGHTS
from natprec.quantizers import quantize
from natprec.runtime.kernels import reference
from natprec.runtime.kernels.floats import DequantizeFloats
from natprec.runtime.kernels.joined import Joined
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.linear import QuantizedWeight
from natprec.runtime.load import load
from tests.arrange import tokens
from tests.checkpoints.test_float_formats import made_of, written
from tests.run_command import natprec
from tests.runtime.test_cuda import FLOAT16, WHERE, interpreted

ROWS, COLUMNS = 200, 384


@pytest.mark.parametrize("fmt", FLOAT_WEIGHTS.values(), ids=lambda fmt: fmt.name)
def test_values_and_products_are_those_of_the_weight(fmt: Format, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.runtime.kernels.floats.DENSE", 70 * COLUMNS)  # rows in three blocks
    draw = torch.Generator().manual_seed(0)
    weight = quantize(torch.randn(ROWS, COLUMNS, generator=draw), fmt, torch.bfloat16)
    layer = Layer(fmt, ROWS, COLUMNS)
    dtype = torch.bfloat16 if fmt.scaling.dtype == "model" else torch.float32
    stored = QuantizedWeight(weight, layer, DequantizeFloats(), dtype)
    dense = weight.dequantize()
    for rows in (slice(None), slice(3, 130), torch.tensor([5, 0, 199, 5])):
        torch.testing.assert_close(stored.values(rows), dense[rows], rtol=2e-7, atol=0)
    x = torch.randn(3, COLUMNS, generator=draw)
    expected = reference.linear(x, weight)
    assert (stored(x) - expected).abs().max() < 1e-6 * expected.abs().max()
    held = sum(buffer.nbytes for buffer in stored.buffers())
    spread = {"fp8-tensor": 2 * ROWS, "fp8-block128": 2 * 3 * ROWS}.get(fmt.name, 0)  # scales once for each row
    assert held <= fmt.stored_bytes(ROWS, COLUMNS) + spread


def test_generate_runs_it(tmp_path: Path, tiny_tokenizer: Any) -> None:
    for name in ("fp8-channel", "nvfp4", "mxfp4"):
        made, codes = made_of(parse_format(name), tiny_tokenizer, vocab_size=512)
        folder = written(tmp_path / name, made, codes)
        done = natprec("generate", folder, "--prompt", "some words", "--max-new-tokens", 4, "--greedy", "--explain")
        assert done.code == 0, done.err
        assert "dequantize-floats" in done.out + done.err
        assert name in done.out + done.err


def test_weights_of_one_product_share_their_outer_scale(tmp_path: Path, tiny_tokenizer: Any) -> None:
    """natprec writes one for query, key and value; others may not, and then each runs alone."""
    made, codes = made_of(parse_format("nvfp4"), tiny_tokenizer)
    folder = written(tmp_path, made, codes)
    ids = tokens(1, 3).ids
    together = load(folder)
    assert any("self_attn" in name for name, module in together.model.named_modules() if isinstance(module, Joined))
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("k_proj.weight_global_scale")]:
        tensors[name] = tensors[name] * 2
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    apart = load(folder)
    joined = [name for name, module in apart.model.named_modules() if isinstance(module, Joined)]
    assert joined
    assert not any("self_attn" in name for name in joined)
    for name, module in made.model.named_modules():
        if name.endswith("k_proj"):
            module.weight.data /= 2
    with torch.no_grad():
        expected = made.model(input_ids=ids).logits
        assert (apart(input_ids=ids).logits - expected).abs().max() < 1e-3 * expected.abs().max()


@WHERE
@pytest.mark.parametrize("name", ["nvfp4"])
def test_triton_computes_what_the_dense_weights_do(name: str, device: str, tmp_path: Path, tiny_tokenizer: Any) -> None:
    pytest.importorskip("triton")
    made, codes = made_of(parse_format(name), tiny_tokenizer, num_hidden_layers=1)  # the interpreter is slow
    folder = written(tmp_path, made, codes)
    found = interpreted(folder, device)
    assert found["kernels"] == ["half", "triton"]
    assert found["written"] == 0
    assert max(found["many"], found["one"]) < FLOAT16
    many = interpreted(folder, device, "48")
    assert many["written"] == 5  # query, key and value together; gate and up apart, as the kernel ends them
    assert max(many["many"], many["one"]) < FLOAT16
