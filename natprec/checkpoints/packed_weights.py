"""A quantized weight as the tensors of a compressed-tensors checkpoint, packed by that library's functions, and back.

    integers           weight_packed int32, weight_scale, weight_shape, weight_zero_point      pack-quantized
    …, one to a byte   weight int8, weight_scale                                               int-quantized
    FP8                weight float8, weight_scale                                             float-quantized
    MXFP8              weight float8, weight_scale uint8 = 127 + exponent                      mxfp8-quantized
    MXFP4, MXFP6       weight_packed uint8, weight_scale uint8                                 mxfp4-, mxfp6-pack-…
    NVFP4              weight_packed uint8, weight_scale float8, weight_global_scale float32   nvfp4-pack-quantized

The library's compressors round a float weight again; here the codes are known. So only their packing is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.formats import Format, Integer, PerBlock, PerTensor
from natprec.formats.codebook import E2M1, E2M3, E4M3
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.scale_bytes import powers
from natprec.quantizers.scale_storage import inner_scales

FLOATS = 1 << 24
"""Weights that are float32 at a time while they are packed or unpacked: 64 MB."""


def packed(uses: list[str], value: QuantizedTensor, int8: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """One weight's tensors, by the modules that use it: codes, scales, zero points.

    Args:
        int8: integer codes one to a byte.
        dtype: of scales in the model's dtype.
    """
    value = value.to("cpu")
    if not isinstance(value.format.codebook, Integer):
        return {f"{uses[0]}.{leaf}": tensor.contiguous() for leaf, tensor in _floating(value, dtype).items()}
    from compressed_tensors.compressors.pack_quantized import pack_to_int32

    scale = value.scale.to(dtype).contiguous()
    if int8:
        tensors = {f"{uses[0]}.weight": value.codes.contiguous()}
        return tensors | {f"{use}.weight_scale": scale.clone() for use in uses}
    tensors = {
        f"{uses[0]}.weight_packed": pack_to_int32(value.codes, value.format.bits).contiguous(),
        f"{uses[0]}.weight_scale": scale,
        f"{uses[0]}.weight_shape": torch.tensor(value.codes.shape),
    }
    if value.zero_point is not None:
        zeros = pack_to_int32(value.zero_point, value.format.bits, packed_dim=0)
        tensors[f"{uses[0]}.weight_zero_point"] = zeros.contiguous()
    return tensors


def stored_as(fmt: Format, shape: tuple[int, int], int8: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a weight by the last part of their names, on the meta device: types and shapes alone.

    Args:
        shape: rows and columns.
        int8: integer codes one to a byte.
        dtype: of scales in the model's dtype.
    """
    rows, columns = shape

    def empty(*sizes: int, of: torch.dtype) -> Tensor:
        return torch.empty(sizes, dtype=of, device="meta")

    by, kind, bits = fmt.scaling.granularity, fmt.scaling.dtype, fmt.bits
    groups = (-(-rows // by.rows) if isinstance(by, PerBlock) else rows, fmt.groups(columns))
    scale = {"e8m0": torch.uint8, E4M3: torch.float8_e4m3fn}.get(kind, dtype)
    scales = {"weight_scale": empty(*((1,) if isinstance(by, PerTensor) else groups), of=scale)}
    if not isinstance(fmt.codebook, Integer):
        whole = {"weight": empty(rows, columns, of=torch.float8_e4m3fn)}
        codes = whole if bits == 8 else {"weight_packed": empty(rows, columns * bits // 8, of=torch.uint8)}
        outer = {} if fmt.scaling.outer is None else {"weight_global_scale": empty(1, of=torch.float32)}
        return codes | scales | outer
    if int8:
        return {"weight": empty(rows, columns, of=torch.int8)} | scales
    words = {"weight_packed": empty(rows, -(-columns * bits // 32), of=torch.int32)}
    zeros = {"weight_zero_point": empty(-(-rows * bits // 32), groups[1], of=torch.int32)}
    return words | scales | {"weight_shape": empty(2, of=torch.int64)} | ({} if fmt.symmetric else zeros)


def _floating(value: QuantizedTensor, dtype: torch.dtype) -> dict[str, Tensor]:
    from compressed_tensors.compressors.mx_utils import compress_mx_scale

    fmt, scale = value.format, _once(value)
    if fmt.bits == 8:
        codes = {"weight": value.codes.contiguous().view(torch.float8_e4m3fn)}
    else:
        pack = _packing(value)
        parts = [pack(fmt.codebook.decode(rows)) for rows in _some_rows(value.codes, value.codes.shape[1])]
        codes = {"weight_packed": torch.cat(parts)}
    if value.outer is not None:
        inner = inner_scales(scale, value.outer, fmt).to(torch.float8_e4m3fn)
        return codes | {"weight_scale": inner, "weight_global_scale": (1.0 / value.outer).reshape(1)}
    if fmt.scaling.dtype == "e8m0":
        return codes | {"weight_scale": compress_mx_scale(scale, torch.uint8)}
    return codes | {"weight_scale": scale.to(dtype)}


def unpacked(fmt: Format, shape: tuple[int, int], tensors: Mapping[str, Tensor], name: str) -> QuantizedTensor:
    """A weight of floating-point codes from its tensors.

    Args:
        shape: rows and columns.
        tensors: by the last part of their names, of the types and shapes that the format has.
        name: of the module and its file, for errors.
    Raises:
        ModelError: a scale or a code is no number that the format has.
    """
    from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    rows, columns = shape
    if fmt.codebook == E4M3:
        codes = tensors["weight"].view(torch.uint8)
        if bool(((codes & 0x7F) == 0x7F).any()):
            raise ModelError(f"tensor 'weight' of {name} holds NaN, which no weight is; download it or quantize again")
    else:
        unpack = {E2M1: unpack_fp4_from_uint8, E2M3: unpack_fp6_from_uint8}[fmt.codebook]  # type: ignore[index]
        parts = _some_rows(tensors["weight_packed"], columns)
        codes = torch.cat([fmt.codebook.encode(unpack(own, len(own), columns, torch.float32)) for own in parts])
    scale, outer = stored_scales(fmt, tensors, name)
    by = fmt.scaling.granularity
    if isinstance(by, PerBlock):
        scale = scale.repeat_interleave(by.rows, 0)[:rows]
    scale = scale.expand(rows, 1) if scale.numel() == 1 else scale.view(rows, -1)
    return QuantizedTensor(fmt, codes, scale.contiguous(), None, None, outer)


def stored_scales(fmt: Format, tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor | None]:
    """Scales of floating-point codes as they are stored, each once, float32; and the outer scale, where there is one.

    Args:
        tensors: by the last part of their names.
        name: of the module and its file, for errors.
    Raises:
        ModelError: one is zero, negative, infinite or no number.
    """
    stored = tensors["weight_scale"]
    scale = powers(stored) if fmt.scaling.dtype == "e8m0" else stored.float()
    _refuse_not_positive("weight_scale", fmt, scale, name)
    if fmt.scaling.outer is None:
        return scale, None
    if "weight_global_scale" not in tensors:
        raise ModelError(f"config.json says {fmt.name} of {name}, which has no weight_global_scale; quantize again")
    divisor = tensors["weight_global_scale"].float()
    _refuse_not_positive("weight_global_scale", fmt, divisor, name)
    outer = (1.0 / divisor).reshape(())
    return scale / divisor.reshape(()), outer


def _refuse_not_positive(leaf: str, fmt: Format, values: Tensor, name: str) -> None:
    good = torch.isfinite(values) & (values > 0)
    if not bool(good.all()):
        raise ModelError(
            f"tensor {leaf!r} of {name} holds {float(values[~good][0])}, and scales of {fmt.name} are positive "
            "numbers; download it or quantize again"
        )


def _packing(value: QuantizedTensor) -> Callable[[Tensor], Tensor]:
    """The library's function from values of the codebook to bytes."""
    from compressed_tensors.compressors.mxfp6.helpers import pack_fp6_to_uint8
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

    known: dict[object, Callable[[Tensor], Tensor]] = {E2M1: pack_fp4_to_uint8, E2M3: pack_fp6_to_uint8}
    return known[value.format.codebook]


def _some_rows(tensor: Tensor, columns: int) -> tuple[Tensor, ...]:
    """Rows at a time, so that few weights are floats at once."""
    return tensor.split(max(1, FLOATS // columns))


def _once(value: QuantizedTensor) -> Tensor:
    """Scales that rows share, once: (1,) of a tensor, (blocks of rows, blocks of a row) of blocks."""
    by = value.format.scaling.granularity
    if isinstance(by, PerTensor):
        return value.scale[0]
    return value.scale[:: by.rows] if isinstance(by, PerBlock) else value.scale
