"""Machine code for five architectures, without a GPU: nothing spilled, small enough, and by the tensor core."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", minversion="3.9", reason="older ones shuffle joined steps through shared memory")

from natprec.formats import Format, integer, parse_format
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.triton.ahead import (
    ARCHITECTURES,
    Compiled,
    Variant,
    compile_for,
    compile_tokens,
    compile_values,
)
from natprec.runtime.kernels.triton.tiles import DECODE, DECODE_CODES, SOME_TOKENS, Tile, tiles

FULL = Epilogue("silu", gated=True, residual=True, output_scale=0.1)
MANY_TOKENS = 512
EXPECTED = {  # instruction for many tokens: 16-bit and 8-bit activations
    "sm_80": ("HMMA.16816", "IMMA.16832"),
    "sm_89": ("HMMA.16816", "IMMA.16832"),
    "sm_90a": ("HGMMA.64", "IGMMA.64"),
    "sm_100a": ("UTCHMMA", "UTCIMMA"),
    "sm_120a": ("HMMA.16816", "IMMA.16832"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is looked at was compiled just now."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def full(bits: int, coded: bool = False) -> Variant:
    """With zero points, bias and everything that an epilogue can hold."""
    return Variant(integer(bits, 64, False), torch.int8 if coded else torch.float16, FULL, biased=True)


def faults(compiled: Compiled, architecture: str) -> list[str]:
    """Local memory, shuffling two bytes at a time, 4-byte copies, more than can be launched."""
    too_much = compiled.shared > ARCHITECTURES[architecture].shared_per_program or compiled.programs < 1
    return [
        *(["local memory"] if compiled.local or compiled.count("LDL|STL") else []),
        *(["shuffles through shared memory"] if compiled.count("STS.U16") else []),
        *(["4-byte copies"] if compiled.count(r"LDGSTS.E$") or not compiled.count(r"LDGSTS.*\.128") else []),
        *(["cannot be launched"] if too_much else []),
    ]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_as_small_as_the_first_planar_kernel(bits: int) -> None:
    """That one, W4A16 with 16 x 64 x 128 tiles on sm_90: 54 registers, 16,896 bytes, 9 programs a multiprocessor."""
    compiled = compile_for(Variant(integer(bits, 64)), Tile(16, 64, join=2, registers=54), "sm_90a")
    assert faults(compiled, "sm_90a") == []
    assert compiled.registers <= 54
    assert compiled.programs >= 9
    assert bits == 8 or compiled.shared <= 16_896  # 8-bit words alone are 16 KB in two buffers
    assert compiled.tensor_core == "HMMA.16816"
    # A turn of 128 columns is bits / 2 runs of 8 words of 4 bytes for each of 64 rows: 128 threads load 16 bytes each,
    # twice before the loop and once in it. What is loaded otherwise are activations, 16 x 32 of them at a time.
    assert compiled.count(r"LDGSTS.*\.128") == 3 * 64 * 16 * bits // (128 * 16)
    assert compiled.count("LDGSTS") - compiled.count(r"LDGSTS.*\.128") == compiled.count(r"LDGSTS.E\.64$") == 12


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_many_tokens_take_the_widest_instruction(architecture: str) -> None:
    tile = tiles(MANY_TOKENS, ARCHITECTURES[architecture].capability, 4, codes=False)[0]
    compiled = compile_for(full(4), tile, architecture)
    assert faults(compiled, architecture) == []
    assert compiled.tensor_core == EXPECTED[architecture][0]


@pytest.mark.parametrize(("architecture", "bits"), [("sm_80", 7), ("sm_90a", 4), ("sm_90a", 8), ("sm_100a", 4)])
def test_codes_of_activations_take_the_integer_one(architecture: str, bits: int) -> None:
    tile = tiles(MANY_TOKENS, ARCHITECTURES[architecture].capability, bits, codes=True)[0]
    compiled = compile_for(full(bits, coded=True), tile, architecture)
    assert faults(compiled, architecture) == []
    assert compiled.tensor_core == EXPECTED[architecture][1]


@pytest.mark.parametrize(("architecture", "bits"), [("sm_89", 3), ("sm_90a", 6), ("sm_120a", 7)])
def test_few_tokens(architecture: str, bits: int) -> None:
    compiled = compile_for(full(bits), DECODE[0], architecture)
    assert faults(compiled, architecture) == []
    assert compiled.programs >= 3
    assert compiled.tensor_core == "HMMA.16816"


@pytest.mark.parametrize("coded", [False, True])
def test_some_tokens_share_columns(coded: bool) -> None:
    variant = replace(full(4, coded), shared=True)
    compiled = compile_for(variant, tiles(SOME_TOKENS, 90, 4, coded)[0], "sm_90a")
    assert faults(compiled, "sm_90a") == []
    assert compiled.programs >= 3
    assert compiled.tensor_core == EXPECTED["sm_90a"][coded]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "epilogue", [Epilogue("silu", gated=True), Epilogue(residual=True)], ids=lambda each: each.name
)
def test_what_the_runtime_asks_for(epilogue: Epilogue, architecture: str) -> None:
    """float32 beside float16 products, as the two kernels of a gated product and that of a residual."""
    variant = Variant(integer(4, 64), epilogue=epilogue, shared=True, wide=True)
    compiled = compile_for(variant, DECODE[0], architecture)
    assert faults(compiled, architecture) == []
    assert compiled.programs >= 3


@pytest.mark.parametrize("codes", [False, True, None])
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90a", "sm_120a"])
def test_tokens_are_read_16_bytes_at_a_time(codes: bool | None, architecture: str) -> None:
    compiled = compile_tokens(codes, architecture)
    assert compiled.local == 0
    assert compiled.programs >= 2
    assert compiled.count(r"LDG.*\.128") > 0


def test_few_tokens_of_codes() -> None:
    """Of two planes, held to 128 registers."""
    compiled = compile_for(full(3, coded=True), DECODE_CODES[0], "sm_90a")
    assert faults(compiled, "sm_90a") == []
    assert compiled.tensor_core == "IMMA.16832"


@pytest.mark.parametrize("bits", [2, 4])
def test_four_steps_in_one_dot_are_loaded_16_bytes_at_a_time(bits: int) -> None:
    compiled = compile_for(Variant(integer(bits, 64), shared=True), DECODE[1], "sm_90a")
    assert faults(compiled, "sm_90a") == []
    assert compiled.count("LDGSTS") == compiled.count(r"LDGSTS.*\.128") > 0


@pytest.mark.parametrize(
    ("architecture", "fmt"), [("sm_80", integer(3, 64, False)), ("sm_90a", integer(4, 64)),
                              ("sm_90a", integer(7, 32, False)), ("sm_120a", integer(8, 128))]
)  # fmt: skip
def test_values_are_read_and_written_16_bytes_at_a_time(architecture: str, fmt: Format) -> None:
    compiled = compile_values(fmt, architecture)
    assert compiled.local == 0
    assert compiled.programs >= 4
    assert compiled.count(r"LDG.*\.128") > 0  # words
    assert compiled.count("STG") == compiled.count(r"STG.*\.128") > 0


@pytest.mark.parametrize(
    ("architecture", "name"),
    [("sm_80", "nvfp4"), ("sm_89", "mxfp4"), ("sm_90a", "mxfp6"), ("sm_100a", "nvfp4"), ("sm_100a", "int4-g16"),
     ("sm_120a", "fp8-channel")],
)  # fmt: skip
@pytest.mark.parametrize("tokens", [16, MANY_TOKENS])
def test_floats_and_groups_of_one_step_spill_nothing(architecture: str, name: str, tokens: int) -> None:
    """scripts/kernel_table.py --formats has all floats. Of groups of 16 there was an empty kernel for sm_100a."""
    fmt = parse_format(name)
    tile = tiles(tokens, ARCHITECTURES[architecture].capability, fmt.bits, codes=False, fine=True)[0]
    compiled = compile_for(Variant(fmt, epilogue=FULL, biased=True), tile, architecture)
    assert compiled.local == 0
    assert compiled.programs >= 1
    assert compiled.shared <= ARCHITECTURES[architecture].shared_per_program
    assert compiled.tensor_core


def test_limits_can_be_exceeded() -> None:
    """A kernel held to too few registers spills, and is seen to."""
    compiled = compile_for(full(4), Tile(16, 64, registers=40), "sm_80")
    assert compiled.local > 0
    assert faults(compiled, "sm_80") == ["local memory"]
