"""The C files here as a shared library: compiled once for each version, kept in the user's cache, called by ctypes.

docs/runtime.md has its timings beside those of torch's own low-bit operations, for which it is worth a C compiler.
Without one natprec runs on torch's operations and says why.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.native.compiled import loaded

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-mavx2", "-mfma", "-mf16c", "-shared", "-fPIC", "-fopenmp")
VARIANTS = {"avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"), "avx2": ()}
"""What they can be compiled for, the fastest first; flags beyond `FLAGS`."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""Dtypes of scales and unquantized weights, as planes.c numbers them."""

LONGEST = 1 << 14
"""Tokens beyond which attention is torch's: scores of six queries lie on the stack of a thread, 36 bytes a token."""


def runnable() -> tuple[str, ...]:
    """Those of `VARIANTS` whose instructions this CPU has, the fastest first."""
    capability = torch.backends.cpu.get_cpu_capability()
    if capability not in ("AVX2", "AVX512"):
        return ()
    return tuple(VARIANTS) if capability == "AVX512" and torch.cpu._is_vnni_supported() else ("avx2",)


@functools.cache
def library() -> tuple[Any, str]:
    """The fastest variant that this machine runs, or None and why there is none."""
    names = runnable()
    return variant(names[0]) if names else (None, "the CPU has no AVX2")


@functools.cache
def variant(name: str) -> tuple[Any, str]:
    """One of `VARIANTS`, compiled when first asked for; or None and why it is not."""
    flags = FLAGS + VARIANTS[name]
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None, "there is no C compiler (cc, or $CC)"
    try:
        opened = loaded(compiler, flags, FOLDER)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        return None, f"the C files were not compiled ({said[0] if said else type(error).__name__})"
    pointer, long, integer = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
    opened.natprec_linear.argtypes = [
        pointer, long, long, pointer, pointer, integer, pointer, integer, long, long, long, pointer, integer
    ]  # fmt: skip
    opened.natprec_values.argtypes = [
        pointer, pointer, integer, pointer, integer, long, long, long, long, long, pointer, integer
    ]  # fmt: skip
    opened.natprec_tokens.argtypes = [pointer, long, long, pointer, pointer, integer]
    opened.natprec_half.argtypes = [pointer, long, long, pointer, integer, long, pointer, integer]
    real = ctypes.c_float
    opened.natprec_norm.argtypes = [pointer, long, long, pointer, real, pointer, integer]
    opened.natprec_rotate.argtypes = [pointer, long, long, long, long, pointer, pointer, long, integer]
    opened.natprec_gate.argtypes = [pointer, pointer, long, long, long, pointer, integer]
    opened.natprec_blocks.argtypes = [
        pointer, long, pointer, pointer, pointer, pointer, pointer, pointer, long, pointer, integer
    ]  # fmt: skip
    opened.natprec_columns.argtypes = [
        pointer, long, long, long, pointer, long, pointer, pointer, pointer, pointer, pointer, pointer, integer
    ]  # fmt: skip
    opened.natprec_errors.argtypes = [pointer, long, long, pointer, pointer, real, real, pointer, integer]
    if hasattr(opened, "natprec_attention"):  # needs instructions of AVX-512
        opened.natprec_moments.argtypes = [pointer, long, long, pointer, integer, integer]
        opened.natprec_attention.argtypes = [
            pointer, long, long, pointer, long, long, pointer, long, long, long, long, long, long, real, pointer,
            integer,
        ]  # fmt: skip
    return opened, ""


def reads(x: Tensor) -> bool:
    """Whether the C files take tensors from where this one is."""
    return x.is_cpu and library()[0] is not None


def linear(x: Tensor, packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, step: int) -> Tensor:
    """X (tokens, columns), float32, times a weight in planes; `step` columns share the rounding of activations."""
    tokens, columns = x.shape
    rows, scales = scale.shape
    x, y = x.contiguous(), x.new_empty(tokens, rows)
    steps = -(-columns // step)
    enough = library()[0].natprec_linear(
        x.data_ptr(), tokens, columns, packed.data_ptr(), scale.data_ptr(), KINDS[scale.dtype],
        None if zero is None else zero.data_ptr(), bits, rows, step, steps // scales, y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    if not enough:
        raise MemoryError("no memory for the activations of a low-bit product")
    return y


def values(
    packed: Tensor, scale: Tensor, zero: Tensor | None, bits: int, columns: int, group: int, start: int, stop: int
) -> Tensor:
    """Rows `start` to `stop` of a weight in planes, float32."""
    y = torch.empty(stop - start, columns)
    library()[0].natprec_values(
        packed.data_ptr(), scale.data_ptr(), KINDS[scale.dtype], None if zero is None else zero.data_ptr(), bits,
        start, stop, columns, packed.shape[1] // (4 * bits), group, y.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return y


def half(x: Tensor, weight: Tensor) -> Tensor:
    """X (tokens, columns), float32, times a weight in bfloat16 or float16, transposed."""
    x, y = x.contiguous(), x.new_empty(len(x), len(weight))
    library()[0].natprec_half(
        x.data_ptr(), *x.shape, weight.data_ptr(), KINDS[weight.dtype], len(weight), y.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return y


def tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """X (tokens, columns), float32, as bytes 128 + code, and a scale for each token: `reference.quantize_tokens`."""
    x, codes, scale = x.contiguous(), torch.empty(x.shape, dtype=torch.uint8), x.new_empty(len(x))
    library()[0].natprec_tokens(
        x.data_ptr(), *x.shape, codes.data_ptr(), scale.data_ptr(), torch.get_num_threads()
    )  # fmt: skip
    return codes, scale


def on_bfloat16() -> bool:
    """Whether `attention` and `add_products` run here: they need AVX512_BF16 and the avx512 variant."""
    return hasattr(library()[0], "natprec_attention") and torch.cpu._is_avx512_bf16_supported()


def attends(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `attention` reads these: as there, of float32, and not for so many tokens that a stack is too small."""
    states = (query, key, value)
    if not all(x.is_cpu and x.dim() == 4 and x.dtype == torch.float32 and x.stride(3) == 1 for x in states):
        return False
    batch, heads, time, size = query.shape
    same = key.shape == value.shape and key.shape[::2] == (batch, time) and key.shape[3] == size
    return same and heads % key.shape[1] == 0 and size % 16 == 0 and time <= LONGEST and on_bfloat16()


def attention(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Causal attention in bfloat16 with float32 sums: (batch, time, heads, size), float32.

    Args:
        query: (batch, heads, time, size); see `attends`.
        key: (batch, key heads, time, size), as `value`.
        scaling: of scores.
    """
    batch, heads, time, size = query.shape
    y = query.new_empty(batch, time, heads, size)
    for parts in zip(query, key, value, y, strict=True):
        places = [place for x in parts[:3] for place in (x.data_ptr(), x.stride(1), x.stride(0))]
        enough = library()[0].natprec_attention(
            *places, time, heads, key.shape[1], size, scaling, parts[3].data_ptr(), torch.get_num_threads()
        )  # fmt: skip
        if not enough:
            raise MemoryError("no memory for the keys and values of an attention")
    return y


def add_products(sums: Tensor, vectors: Tensor) -> None:
    """Add Σ v vᵀ in bfloat16 with float32 sums, on and above the diagonal; some of what is below it changes too.

    Args:
        sums: (size, size), contiguous, float64 or float32.
        vectors: (count, size), float32.
    """
    vectors = vectors.contiguous()
    enough = library()[0].natprec_moments(
        vectors.data_ptr(), *vectors.shape, sums.data_ptr(), sums.dtype == torch.float64, torch.get_num_threads()
    )  # fmt: skip
    if not enough:
        raise MemoryError("no memory for the second moments of a layer's inputs")


def round_columns(
    block: Tensor, factor: Tensor, scale: Tensor, offset: Tensor, low: Tensor, high: Tensor, codes: Tensor
) -> Tensor:
    """Round a block (columns, rows) column after column, in place; returns the errors, (columns, rows).

    Args:
        factor: (columns, columns), upper: what columns lose of the errors before them, by which they divide their own.
        scale: (columns, rows), as `offset` and `codes`, int8, which is filled.
        low: (rows,), as `high`: the codes' range.
    """
    errors, scale, offset = torch.empty(block.shape), scale.contiguous(), offset.contiguous()
    library()[0].natprec_columns(
        block.data_ptr(), block.stride(0), *block.shape, factor.data_ptr(), factor.stride(0), scale.data_ptr(),
        offset.data_ptr(), low.data_ptr(), high.data_ptr(), codes.data_ptr(), errors.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    return errors


def grid_errors(
    grouped: Tensor, scale: Tensor, offset: Tensor | None, low: float, high: float, out: Tensor | None = None
) -> Tensor:
    """What rounding to nearest adds to weights (…, group size); scale and offset, if any, are (…)."""
    grouped, scale = grouped.contiguous(), scale.contiguous()
    offset = None if offset is None else offset.contiguous()
    out = torch.empty(grouped.shape) if out is None else out
    library()[0].natprec_errors(
        grouped.data_ptr(), scale.numel(), grouped.shape[-1], scale.data_ptr(),
        None if offset is None else offset.data_ptr(), low, high, out.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return out
