"""The kernels compiled for GPUs that are not there, and what the machine code says: a report, and limits to hold it to.

Triton compiles to a cubin without a driver; its wheel has the disassemblers. Registers, shared memory and local
memory are read from the cubin, instructions from its disassembly. How many programs fit on a multiprocessor
follows from these and the limits in the CUDA programming guide (technical specifications per compute capability).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from natprec.formats import Float, Format
from natprec.gpu.columns_kernel import COLUMNS, round_block
from natprec.gpu.columns_kernel import WARPS as ROUND_WARPS
from natprec.gpu.columns_kernel import arguments as round_arguments
from natprec.quantizers import QuantizedTensor
from natprec.runtime.kernels.epilogue import Epilogue
from natprec.runtime.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, PlanarWeight, planar
from natprec.runtime.kernels.triton.dense_kernel import planar_values
from natprec.runtime.kernels.triton.kernel import planar_linear
from natprec.runtime.kernels.triton.launch import (
    arguments,
    constants,
    norm_arguments,
    options,
    tokens_arguments,
    values_arguments,
)
from natprec.runtime.kernels.triton.tiles import TOKENS, VALUES, Tile
from natprec.runtime.kernels.triton.tokens_kernel import normed_tokens, scaled_tokens


@dataclass(frozen=True)
class Architecture:
    """Limits of a multiprocessor: bytes of shared memory per multiprocessor and per program, threads, programs."""

    capability: int
    shared: int
    shared_per_program: int
    threads: int
    programs: int


ARCHITECTURES = {
    "sm_80": Architecture(80, 164 << 10, 163 << 10, 2048, 32),
    "sm_89": Architecture(89, 100 << 10, 99 << 10, 1536, 24),
    "sm_90a": Architecture(90, 228 << 10, 227 << 10, 2048, 32),
    "sm_100a": Architecture(100, 228 << 10, 227 << 10, 2048, 32),
    "sm_120a": Architecture(120, 100 << 10, 99 << 10, 1536, 24),
}
REGISTERS, RESERVED_SHARED = 65536, 1024
"""Of a multiprocessor; of each program, taken by the driver."""
SIZE = 4096
"""Rows and columns of what is compiled for; what follows from it is that sizes are multiples of 16."""


@dataclass(frozen=True)
class Variant:
    """What a product is compiled for, its shape apart."""

    format: Format
    x_dtype: torch.dtype = torch.float16
    epilogue: Epilogue = Epilogue()  # noqa: RUF009  a frozen value
    biased: bool = False
    shared: bool = False
    """Several programs have the columns of an output tile."""
    wide: bool = False
    """As the runtime asks for it: tokens have a scale, the result and what follows the product are float32."""

    @property
    def name(self) -> str:
        """For example `int4-g64 A8 silu+int8`."""
        inputs = "A8" if self.x_dtype == torch.int8 else "A16"
        more = f"{' shared' if self.shared else ''}{' wide' if self.wide else ''}"
        return f"{self.format.name} {inputs} {self.epilogue.name}{more}"


@dataclass(frozen=True)
class Compiled:
    """What the machine code says.

    Attributes:
        registers: per thread.
        shared: bytes per program.
        local: bytes of local memory per thread: what was spilled.
        programs: that fit on a multiprocessor.
        instructions: how often each occurs, with its modifiers.
    """

    registers: int
    shared: int
    local: int
    programs: int
    instructions: Counter[str]

    def count(self, pattern: str) -> int:
        """Instructions whose name matches from its beginning."""
        return sum(number for name, number in self.instructions.items() if re.match(pattern, name))

    @property
    def tensor_core(self) -> str:
        """The instruction that multiplies, without modifiers that say no more than the layout."""
        found = [name for name in self.instructions if re.match(r"(UTC|HG|IG|H|I)[A-Z]*MMA", name)]
        return ", ".join(sorted({".".join(name.split(".")[:2]) for name in found}))


def compile_for(variant: Variant, tile: Tile, architecture: str) -> Compiled:
    """Compile one variant of the product; seconds."""
    values, weight = _arguments(variant)
    fixed = constants(weight, variant.x_dtype, variant.epilogue.activation, tile)
    return _compile(planar_linear, values, fixed, tile, architecture)


def compile_values(fmt: Format, architecture: str) -> Compiled:
    """Compile the kernel that writes a weight's values."""
    _, weight = _arguments(Variant(fmt))
    out, unit = torch.empty(SIZE, SIZE, dtype=torch.float16, device="meta"), torch.empty((), device="meta")
    values, fixed = values_arguments(out, weight, unit, 0)
    return _compile(planar_values, values, fixed, VALUES, architecture)


def compile_tokens(codes: bool | None, architecture: str) -> Compiled:
    """Compile the kernel that scales tokens to halves or int8 codes, or, for None, the one that norms them."""
    x, scale = torch.empty(16, SIZE, device="meta"), torch.empty(SIZE, device="meta")
    if codes is None:
        values, fixed = norm_arguments(x, x, scale, 1e-5)
        return _compile(normed_tokens, values, fixed, TOKENS, architecture)
    values, fixed = tokens_arguments(x.to(torch.int8 if codes else torch.float16), scale, x)
    return _compile(scaled_tokens, values, fixed, TOKENS, architecture)


def compile_columns(codebook: Float | None, architecture: str) -> Compiled:
    """Compile the kernel of GPTQ's columns, for a codebook of floats or integers."""
    matrices = [torch.empty(COLUMNS, SIZE, device="meta") for _ in range(5)]
    block, scale, offset, errors, chosen = matrices
    factor, low, high = (torch.empty(shape, device="meta") for shape in ((SIZE, SIZE), (SIZE,), (SIZE,)))
    values, fixed = round_arguments(block, factor, scale, offset, low, high, errors, chosen, codebook)
    return _compile(round_block, values, fixed, Tile(COLUMNS, SIZE, warps=ROUND_WARPS), architecture)


def _compile(
    kernel: triton.JITFunction[Any],
    values: Mapping[str, Tensor | int | float | None],
    fixed: dict[str, Any],
    tile: Tile,
    architecture: str,
) -> Compiled:
    arch = ARCHITECTURES[architecture]
    fixed = fixed | {name: None for name, value in values.items() if value is None}
    signature = {name: "constexpr" if name in fixed else _type(values[name]) for name in kernel.arg_names}
    divisible = {
        (kernel.arg_names.index(name),): [["tt.divisibility", 16]]
        for name, value in values.items()
        if isinstance(value, Tensor) or (isinstance(value, int) and name != "M")
    }
    source = ASTSource(kernel, signature, fixed, divisible)
    built = triton.compile(source, target=GPUTarget("cuda", arch.capability, 32), options=options(tile))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(built.asm["cubin"])
        cubin.flush()
        usage = _tool("cuobjdump", "-res-usage", cubin.name)
        listing = _tool("nvdisasm", "-c", cubin.name)
    registers, local = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    shared = int(built.metadata.shared)
    found = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", listing, re.MULTILINE)
    programs = min(
        arch.programs,
        arch.threads // (32 * tile.warps),
        arch.shared // (shared + RESERVED_SHARED),
        REGISTERS // (-(-registers // 8) * 8 * 32 * tile.warps),
    )
    return Compiled(registers, shared, local, programs, Counter(found))


def _arguments(variant: Variant) -> tuple[dict[str, Tensor | int | float | None], PlanarWeight]:
    """Tensors without contents."""
    size, tokens, fmt = SIZE, 16, variant.format
    coded = variant.x_dtype == torch.int8
    groups = fmt.groups(size)

    def floats(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    zero = torch.empty(size, groups, dtype=torch.int8, device="meta")
    codes = torch.empty(size, size, dtype=fmt.code_dtype, device="meta")
    outer = None if fmt.scaling.outer is None else torch.empty((), device="meta")
    quantized = QuantizedTensor(fmt, codes, floats(size, groups), None if fmt.symmetric else zero, outer=outer)
    weight = planar(quantized, DEPTH_OF_CODES if coded else DEPTH_OF_FLOATS)
    epilogue = variant.epilogue
    beside = torch.float32 if variant.wide else torch.float16
    stored = beside if epilogue.output_scale is None else torch.int8
    values = arguments(
        torch.empty(tokens, size, dtype=stored, device="meta"),
        torch.empty(tokens, size, dtype=variant.x_dtype, device="meta"),
        weight,
        epilogue,
        torch.empty(tokens, device="meta") if coded or variant.wide else None,
        floats(size, dtype=beside) if variant.biased else None,
        floats(tokens, size, dtype=beside) if epilogue.gated else None,
        floats(tokens, size, dtype=beside) if epilogue.residual else None,
        torch.empty(tokens, size, device="meta") if variant.shared else None,
        torch.empty(size, dtype=torch.int32, device="meta") if variant.shared else None,
    )
    return values, weight


def _type(value: Tensor | int | float | None) -> str:
    """Triton's name for an argument's type."""
    if isinstance(value, Tensor):
        names = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.uint8: "u8"}
        return "*" + (names.get(value.dtype) or f"i{8 * value.element_size()}")
    return "fp32" if isinstance(value, float) else "i32"


def _tool(name: str, *options_: str) -> str:
    """The output of one of the wheel's disassemblers."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([program, *options_], check=True, capture_output=True, text=True).stdout
