"""GPTQ's columns as one kernel: its numbers in Triton's interpreter, its machine code for five architectures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import integer
from natprec.formats.codebook import E2M1, Float
from natprec.gpu import columns
from natprec.quantizers.gptq import LAZY_COLUMNS, gptq
from natprec.quantizers.hessian import Hessian
from tests.gpu.columns_cases import CASES, MUTATIONS, run, wrong


def interpreted(what: str) -> Any:
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.gpu.columns_cases", what],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_the_kernel_is_right() -> None:
    results = interpreted("cpu")
    assert len(results) == len(CASES)
    assert {result["name"]: wrong(result) for result in results if wrong(result)} == {}


def test_mutations_are_caught() -> None:
    results = interpreted("mutations")
    caught = {name for name, result in results.items() if wrong(result)}
    assert caught == set(MUTATIONS)


def test_it_compiles_for_five_architectures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is spilled, and a multiprocessor holds 15 programs of a warp or more."""
    pytest.importorskip("triton")
    from natprec.runtime.kernels.triton.ahead import ARCHITECTURES, compile_columns

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    codebooks: tuple[Float | None, ...] = (None, E2M1)
    for codebook in codebooks:
        for architecture in ARCHITECTURES:
            compiled = compile_columns(codebook, architecture)
            assert compiled.local == 0
            assert not compiled.count("LDL|STL")
            assert compiled.programs >= 15


def test_a_block_is_no_longer_than_the_kernel_holds() -> None:
    pytest.importorskip("triton")
    from natprec.gpu.columns_kernel import COLUMNS

    assert LAZY_COLUMNS <= COLUMNS


def test_without_the_c_file_codes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop over torch's operations, which the kernel is held against, and the C file of the CPU."""
    draw = torch.Generator().manual_seed(0)
    weight, inputs = torch.randn(96, 128, generator=draw), torch.randn(256, 128, generator=draw)
    fitted = Hessian.of(inputs.T @ inputs)
    compiled = gptq(weight, fitted, integer(4, 32), torch.bfloat16)
    monkeypatch.setattr("natprec.native.reads", lambda x: False)
    plain = gptq(weight, fitted, integer(4, 32), torch.bfloat16)
    assert torch.equal(compiled.scale, plain.scale)
    assert (compiled.codes != plain.codes).sum() <= 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU; the interpreter runs the same cases")
@pytest.mark.parametrize("case", CASES)
def test_the_kernel_is_right_on_a_gpu(case: tuple[int, int, Float | None]) -> None:
    assert wrong(run(case, lambda value: value.cuda())) == ""


def test_the_operation_says_what_it_overwrites() -> None:
    schema = torch.ops.natprec.round_columns.default._schema
    assert [argument.name for argument in schema.arguments if argument.alias_info] == ["block"]
    assert columns.SCHEMA.startswith("round_columns(Tensor(a!) block")
