"""From tensors to a launch: which arguments are constants of the compiled kernel, and the grid."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from natprec.formats import Float
from natprec.formats.codebook import E4M3
from natprec.runtime.kernels.epilogue import Epilogue
from natprec.runtime.kernels.layout import TILE, WORDS, PlanarWeight
from natprec.runtime.kernels.planes import plane_widths
from natprec.runtime.kernels.triton.dense_kernel import planar_values
from natprec.runtime.kernels.triton.kernel import planar_linear
from natprec.runtime.kernels.triton.tiles import TOKENS, VALUES, Tile, join, sharing, span, tiles
from natprec.runtime.kernels.triton.tokens_kernel import normed_tokens, scaled_tokens

SCALES: dict[Any, str] = {E4M3: "e4m3", "e8m0": "e8m0"}
"""How the kernels call scales that are no floats of 16 or 32 bits."""

HALF_BIAS = 15
"""Of float16's exponents."""

OPERANDS = {torch.int8: tl.int8, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def constants(
    weight: PlanarWeight, x_dtype: torch.dtype, activation: str, tile: Tile, interpreted: bool = False
) -> dict[str, Any]:
    """The constexpr arguments of `planar_linear`, by name.

    Args:
        interpreted: for the interpreter, whose bfloat16 arithmetic is wrong; operands are float32 then.
    """
    fmt = weight.format
    group = None if weight.scale.shape[0] == 1 else fmt.span(weight.columns)
    widths = (*plane_widths(fmt.bits), 0, 0)
    operand, codebook = OPERANDS[x_dtype], fmt.codebook
    floats = codebook if isinstance(codebook, Float) else None
    return {
        "BITS": fmt.bits,
        "MANTISSA": floats.mantissa if floats else -1,
        "SCALES": SCALES.get(fmt.scaling.dtype, "float"),
        "UNIT": 2.0 ** (HALF_BIAS - floats.bias) if floats else 1.0,
        **{f"PLANE{index}": widths[index] for index in range(3)},
        "TILE": TILE,
        "WORDS": WORDS,
        "R": weight.depth,
        "GROUP": group or 0,
        "TURN": tile.columns,
        "SPAN": span(group, tile),
        "EVEN": weight.columns % tile.columns == 0,
        "COMPUTE": tl.float32 if interpreted and operand == tl.bfloat16 else operand,
        "ACTIVATION": activation,
        "BM": tile.tokens,
        "BN": tile.rows,
        "JOIN": join(tile, group, weight.depth, widths[0]),
        "LEFT": tile.left,
    }


def options(tile: Tile) -> dict[str, Any]:
    """What the compiler is told. Fusing a·b + c is said outright: its default differs between releases of Triton."""
    return {"num_warps": tile.warps, "num_stages": tile.stages, "maxnreg": tile.registers, "enable_fp_fusion": True}


def arguments(
    out: Tensor,
    x: Tensor,
    weight: PlanarWeight,
    epilogue: Epilogue,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
    partial: Tensor | None = None,
    arrived: Tensor | None = None,
) -> dict[str, Tensor | int | float | None]:
    """The other arguments of `planar_linear`, by name."""
    return {
        "x": x,
        "x_scale": x_scale,
        **_stored(weight),
        "bias": bias,
        "multiplier": multiplier,
        "residual": residual,
        "out": out,
        "partial": partial,
        "arrived": arrived,
        "M": x.shape[0],
        "N": weight.rows,
        "inverse_output_scale": None if epilogue.output_scale is None else 1 / epilogue.output_scale,
    }


def _stored(weight: PlanarWeight) -> dict[str, Tensor | int | float | None]:
    """The arguments that are a weight's."""
    planes = (*weight.planes, None, None)
    return {
        **{f"plane{index}": planes[index] for index in range(3)},
        "scale": weight.scale,
        "zero": weight.zero_point,
        "outer": weight.outer,
        "PADDED": weight.scale.shape[1],
        "K": weight.columns,
    }


def values_arguments(
    out: Tensor, weight: PlanarWeight, unit: Tensor, begin: int
) -> tuple[dict[str, Tensor | int | float | None], dict[str, Any]]:
    """The arguments of `planar_values` by name, and its constants."""
    fixed = constants(weight, torch.float16, "none", VALUES)
    return (
        _stored(weight) | {"N": begin + len(out), "unit": unit, "out": out, "begin": begin},
        {name: value for name, value in fixed.items() if name in planar_values.arg_names},
    )


def launch_values(out: Tensor, weight: PlanarWeight, unit: Tensor, begin: int) -> None:
    """Fill `out`, (rows, columns), float16, contiguous, with rows of a weight of depth 16, in multiples of 1 / `unit`.

    Args:
        unit: one value, float32.
        begin: the first row.
    """
    values, fixed = values_arguments(out, weight, unit, begin)
    grid = (triton.cdiv(len(out), VALUES.rows), triton.cdiv(weight.columns, VALUES.columns))
    planar_values[grid](**values, **fixed, **({} if triton.knobs.runtime.interpret else options(VALUES)))


def tokens_arguments(
    values: Tensor, scale: Tensor, x: Tensor
) -> tuple[dict[str, Tensor | int | float | None], dict[str, Any]]:
    """The arguments of `scaled_tokens` by name, and its constants."""
    fixed = {"CODES": values.dtype == torch.int8, "BLOCK": _block(x)}
    return {"x": x, "values": values, "scale": scale, "K": x.shape[1]}, fixed


def launch_tokens(values: Tensor, scale: Tensor, x: Tensor) -> None:
    """Fill `values`, int8 or float16, and `scale`, (tokens,), with what `x`, (tokens, columns), is in units of it.

    All are contiguous.
    """
    if x.numel():
        given, fixed = tokens_arguments(values, scale, x)
        scaled_tokens[(len(x),)](**given, **fixed, **({} if triton.knobs.runtime.interpret else options(TOKENS)))


def norm_arguments(
    out: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[dict[str, Tensor | int | float | None], dict[str, Any]]:
    """The arguments of `normed_tokens` by name, and its constants."""
    return {"x": x, "weight": weight, "out": out, "K": x.shape[1], "eps": eps}, {"BLOCK": _block(x)}


def launch_norm(out: Tensor, x: Tensor, weight: Tensor, eps: float) -> None:
    """Fill `out` with the norm of `x`, both (tokens, columns), times `weight`, (columns,); float32, contiguous."""
    if x.numel():
        given, fixed = norm_arguments(out, x, weight, eps)
        normed_tokens[(len(x),)](**given, **fixed, **({} if triton.knobs.runtime.interpret else options(TOKENS)))


def _block(x: Tensor) -> int:
    """Columns of one turn over a token."""
    return min(TOKENS.columns, triton.next_power_of_2(x.shape[1]))


def launch(
    out: Tensor,
    x: Tensor,
    weight: PlanarWeight,
    epilogue: Epilogue,
    x_scale: Tensor | None = None,
    bias: Tensor | None = None,
    multiplier: Tensor | None = None,
    residual: Tensor | None = None,
    tile: Tile | None = None,
    programs: int | None = None,
) -> None:
    """Fill `out`, (tokens, rows), contiguous as all others are; see `natprec.runtime.kernels.triton.ops` for the rest.

    Args:
        tile: instead of the device's default.
        programs: that share the columns of an output tile, instead of `tiles.sharing`.
    """
    if not out.numel():
        return
    if tile is None:
        codes, fine = x.dtype == torch.int8, weight.fine
        tile = tiles(len(x), capability(x.device), weight.format.bits, codes, fine)[0]
    outputs = (triton.cdiv(len(x), tile.tokens), triton.cdiv(weight.rows, tile.rows))
    if programs is None:
        turns = triton.cdiv(weight.columns, tile.columns)
        programs = sharing(tile, outputs[0] * outputs[1], turns, processors(x.device))
    shared = workspace(x.device, outputs, tile, programs) if programs > 1 else (None, None)
    interpreted = triton.knobs.runtime.interpret
    planar_linear[(*outputs, programs)](
        **arguments(out, x, weight, epilogue, x_scale, bias, multiplier, residual, *shared),
        **constants(weight, x.dtype, epilogue.activation, tile, interpreted),
        **({} if interpreted else options(tile)),
    )


_ARRIVED: dict[tuple[torch.device, int], Tensor] = {}
"""Counters of each stream: kernels of one stream follow one another, and each leaves zeros behind."""


def workspace(device: torch.device, outputs: tuple[int, int], tile: Tile, programs: int) -> tuple[Tensor, Tensor]:
    """Room for the sums of programs that share columns, and their counters."""
    count = outputs[0] * outputs[1]
    partial = torch.empty(count * programs * tile.tokens * tile.rows, device=device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A graph fills them at each replay, which may be on any stream: counters of its own, in its own memory.
        return partial, torch.zeros(count, dtype=torch.int32, device=device)
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    arrived = _ARRIVED.get((device, stream))
    if arrived is None or len(arrived) < count:
        arrived = _ARRIVED[device, stream] = torch.zeros(max(count, 1024), dtype=torch.int32, device=device)
    return partial, arrived


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of a GPU; on a CPU, in the interpreter, one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


@cache
def capability(device: torch.device) -> int:
    """Of a GPU, such as 90; on a CPU, in the interpreter, that of the oldest one which the kernel is compiled for."""
    if device.type == "cpu":
        return 80
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
