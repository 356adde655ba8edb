"""Machine code by any release of Triton that is allowed: the interpreter accepts what a compiler may not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from natprec.formats import integer
from natprec.runtime.kernels.triton.ahead import Variant, compile_for, compile_values
from natprec.runtime.kernels.triton.tiles import DECODE, DECODE_CODES


@pytest.mark.parametrize("bits", [3, 4, 7, 8])  # two planes, one, three, and one of whole bytes
def test_both_kernels_compile(bits: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    fmt = integer(bits, 64, False)
    built = [
        compile_for(Variant(fmt), DECODE[0], "sm_90a"),
        compile_for(Variant(fmt, torch.int8), DECODE_CODES[0], "sm_90a"),
        compile_values(fmt, "sm_90a"),
    ]
    assert all(compiled.programs >= 1 for compiled in built)
