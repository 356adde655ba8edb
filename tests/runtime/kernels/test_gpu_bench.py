"""The benchmark as far as it goes without a GPU: cases and bytes, how results are judged, and the form of its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import pack_to_int32

from natprec.runtime.kernels import Epilogue
from scripts import gpu_bench, gpu_kernels
from scripts.gpu_bench import errors, main, right, row
from scripts.gpu_cases import SHAPES, Call, Case, Operands
from scripts.gpu_kernels import KERNELS, Entry
from scripts.gpu_peers import dense_words, gptq_words

SMALL = Case("smollm2-135m", "gate", 4, 3, coded=True)


def test_shapes_are_those_of_the_models() -> None:
    """From the sizes in their config.json: hidden, intermediate, heads, heads of keys, size of a head."""
    sizes = {"smollm2-135m": (576, 1536, 9, 3, 64), "llama-3.1-8b": (4096, 14336, 32, 8, 128)}
    for model, (hidden, between, heads, kv, head) in sizes.items():
        assert SHAPES[model] == {
            "qkv": ((heads + 2 * kv) * head, hidden),
            "o": (hidden, heads * head),
            "gate": (between, hidden),
            "down": (hidden, between),
        }


@pytest.mark.parametrize("layer", ["qkv", "o", "gate", "down"])
def test_bytes(layer: str) -> None:
    for coded in (False, True):
        product = Case("llama-3.1-8b", layer, 4, 16, coded).product
        rows, columns = SHAPES["llama-3.1-8b"][layer]
        assert product.bytes_moved(fused=False) - product.bytes_moved(fused=True) == 8 * 16 * rows
        assert product.epilogue.output_scale is None or (coded and layer == "gate")
        weight = rows * columns // 2 + rows * columns // 64 * 2
        inputs = 16 * (columns + 4) if coded else 16 * columns * 2
        tensors = (product.epilogue.gated + product.epilogue.residual) * 16 * rows * 2
        out = 16 * rows * (1 if product.epilogue.output_scale else 2)
        assert product.bytes_moved(fused=True) == weight + inputs + tensors + out


def test_operands_use_the_grids_of_their_case() -> None:
    operands = Operands(SMALL, "cpu", copies=2)
    first, second = operands.weights
    assert not torch.equal(first.codes, second.codes)
    assert (int(first.codes.min()), int(first.codes.max())) == first.format.code_range
    assert operands.expected.dtype == torch.int8
    assert 10 < operands.expected.double().std() < 100  # spread over the codes, few of them at an end
    assert (operands.expected.abs() == 127).double().mean() < 0.01


def test_one_wrong_code_in_ten_thousand_is_the_limit() -> None:
    expected = torch.randint(-100, 100, (200, 100), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    strict, loose = KERNELS["natprec tile 0"], KERNELS["cublas-bfloat16"]
    found = expected.clone()
    found[0, :2] += 1
    assert right(errors(found, expected), strict)
    found[0, 2] += 1
    assert not right(errors(found, expected), strict)
    assert right(errors(found, expected), loose)
    found[0, 0] += 1
    assert not right(errors(found, expected), strict)
    assert right(errors(found, expected), loose)
    found[0, 0] += 1
    assert right(errors(found, expected), loose)  # one code is nothing of the norm
    assert not right(errors(expected + 3, expected), loose)
    assert not right(errors(-expected, expected), loose)
    floats = expected.double()
    assert right(errors(floats * 1.0005, floats), strict)
    assert not right(errors(floats * 1.002, floats), strict)
    assert not right(errors(floats * torch.nan, floats), loose)


def test_what_is_wrong_or_fails_says_so_and_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    operands = Operands(SMALL, "cpu", copies=1)

    def zeros(operands: Operands) -> Call:
        return lambda copy: torch.zeros_like(operands.expected)

    def failing(operands: Operands) -> Call:
        raise RuntimeError("no kernel image\nand more")

    monkeypatch.setattr(gpu_bench, "measure", lambda call: {"median_us": 1.0})
    monkeypatch.setitem(KERNELS, "zeros", Entry(zeros, 1e-2))
    monkeypatch.setitem(KERNELS, "failing", Entry(failing, 1e-2))
    operands.device = "cuda"
    assert row(SMALL, "zeros", operands)["status"] == "wrong"
    assert row(SMALL, "failing", operands)["status"] == "failed: RuntimeError: no kernel image"
    timed = row(SMALL, "cublas-bfloat16", Operands(SMALL, "cpu", copies=1))
    assert timed["status"] == "right"
    for name in ("zeros", "failing"):
        assert "median_us" not in row(SMALL, name, operands)


def test_words_of_gptq() -> None:
    codes = torch.tensor([[-8, 7, 0, 1, 2, 3, -1, 7], [0] * 8], dtype=torch.int8)
    first, second = gptq_words(codes, 4)[0].tolist()
    assert first & 0xFFFFFFFF == 0xF7BA98F0
    assert second & 0xFFFFFFFF == 0x88888888


@pytest.mark.parametrize("bits", range(2, 9))
def test_dense_words_are_those_of_the_checkpoint(bits: int) -> None:
    draw = torch.Generator().manual_seed(bits)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (3, 96), generator=draw, dtype=torch.int8)
    assert torch.equal(dense_words(codes, bits), pack_to_int32(codes, bits))


def test_an_epilogue_is_one_graph() -> None:
    """So that peers get it as one compiled kernel."""
    epilogue = Epilogue("silu", gated=True, output_scale=0.01)
    value, multiplier = torch.randn(4, 8), torch.randn(4, 8)
    compiled = torch.compile(epilogue.apply, backend="eager", fullgraph=True)
    assert torch.equal(compiled(value, None, multiplier, None), epilogue.apply(value, None, multiplier))


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_bench"])
    assert main() == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "torch finds no GPU here; run this where there is one" in said.err
    monkeypatch.setattr(sys, "argv", ["gpu_bench", "--device", "cpu"])
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert main() == 2
    assert "set TRITON_INTERPRET=1" in capsys.readouterr().err


def test_results_are_checked_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    command = "-m scripts.gpu_bench --device cpu --models smollm2-135m --layers gate --bits 3 4 --tokens 16 --kernels"
    done = subprocess.run(
        [sys.executable, *command.split(), "natprec tile 0", "cublas-bfloat16", "marlin"],
        cwd=Path(gpu_kernels.__file__).parents[1],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed["before"]["torch"] == torch.__version__
    assert [(each["bits"], each["activations"], each["kernel"], each["status"]) for each in printed["results"]] == [
        (bits, activations, kernel, status)
        for bits, dense in ((3, "not run: it is the same whatever the width; see 4 bits"), (4, "right"))
        for activations in ("A16", "A8")
        for kernel, status in (
            ("natprec tile 0", "right"),
            ("cublas-bfloat16", dense),
            ("marlin", "not run: vllm is not installed"),
        )
    ]
    assert {each["epilogue"] for each in printed["results"]} == {"silu+gated", "silu+gated+int8"}
    assert not any("median_us" in each for each in printed["results"])
