"""Weights packed as other tools pack them, one value after the other, and what they stand for.

Each packer takes a weight (outputs, inputs) and gives its tensors by the last part of their names, and the dense weight
that these mean. They are written from the formats' descriptions and share nothing with `natprec.models.foreign_codes`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

FP4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
FP4 += [-value for value in FP4]
Packed = tuple[dict[str, Tensor], Tensor]


def words(codes: Sequence[int], bits: int) -> list[int]:
    """32-bit words, lowest bits first; a code may lie in two of them."""
    whole = sum(code << (bits * place) for place, code in enumerate(codes))
    return [(whole >> (32 * place)) & 0xFFFFFFFF for place in range(len(codes) * bits // 32)]


def signed(rows: list[list[int]]) -> Tensor:
    """Words as int32."""
    return torch.tensor(rows, dtype=torch.int64).to(torch.int32)


def grid(weight: Tensor, bits: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unsigned codes (rows, columns), float16 scales and zero points (rows, groups)."""
    groups = weight.unflatten(1, (-1, size))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half()
    zero = (-low / scale.float()).round().clamp(1, 2**bits - 1).int()
    codes = (groups / scale.float().unsqueeze(-1)).round().int() + zero.unsqueeze(-1)
    return codes.clamp(0, 2**bits - 1).flatten(1), scale, zero


def meant(codes: Tensor, scale: Tensor, zero: Tensor, groups: Tensor) -> Tensor:
    return (codes - zero[:, groups]) * scale.float()[:, groups]


def fp8_blocks(weight: Tensor, size: int = 48) -> Packed:
    """Of a size that divides nothing, so that the last blocks are cut off."""
    rows, columns = weight.shape
    scale = torch.zeros(math.ceil(rows / size), math.ceil(columns / size))
    codes, dense = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn), torch.zeros(rows, columns)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            place = (slice(row * size, (row + 1) * size), slice(column * size, (column + 1) * size))
            scale[row, column] = weight[place].abs().max() / 448
            codes[place] = (weight[place] / scale[row, column]).to(torch.float8_e4m3fn)
            dense[place] = codes[place].float() * scale[row, column]
    return {"weight": codes, "weight_scale_inv": scale}, dense


def fp8_rows(weight: Tensor) -> Packed:
    scale = weight.abs().amax(1, keepdim=True) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale}, codes.float() * scale


def fp8_whole(weight: Tensor) -> Packed:
    """With the scale of rounded inputs beside it, which is nothing of the weight."""
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.25)}, codes.float() * scale


def nearest_fp4(value: float) -> int:
    return min(range(16), key=lambda code: abs(FP4[code] - value))


def nvfp4(weight: Tensor) -> Packed:
    whole = float(weight.abs().max() / (6 * 448))
    groups = weight.unflatten(1, (-1, 16))
    scale = (groups.abs().amax(-1) / 6 / whole).to(torch.float8_e4m3fn)
    factor = scale.float().unsqueeze(-1) * whole
    codes = torch.tensor([nearest_fp4(value) for value in (groups / factor).flatten().tolist()]).view(groups.shape)
    dense = (torch.tensor(FP4)[codes] * factor).flatten(1)
    pairs = codes.flatten(1)
    tensors = {
        "weight": (pairs[:, 0::2] + 16 * pairs[:, 1::2]).to(torch.uint8),
        "weight_scale": scale,
        "weight_scale_2": torch.tensor(whole),
        "input_scale": torch.tensor(0.5),
    }
    return tensors, dense


def gptq(weight: Tensor, bits: int = 4, size: int = 32, order: bool = False, version: int = 1) -> Packed:
    """With `order`, inputs belong to groups in no order, as with `desc_act`."""
    columns = weight.shape[1]
    groups = torch.arange(columns) // size
    if order:
        groups = groups[torch.randperm(columns, generator=torch.Generator().manual_seed(0))]
    sorted_columns = groups.argsort(stable=True)
    codes, scale, zero = grid(weight[:, sorted_columns], bits, size)
    codes = codes[:, sorted_columns.argsort()]
    dense = meant(codes, scale, zero, groups)
    less = 1 if version == 1 else 0
    tensors = {
        "qweight": signed([words(row, bits) for row in codes.tolist()]).T.contiguous(),
        "qzeros": signed([words(row, bits) for row in (zero.T - less).tolist()]),
        "scales": scale.T.contiguous(),
        "g_idx": groups.int(),
    }
    return tensors, dense


def awq(weight: Tensor, size: int = 32) -> Packed:
    codes, scale, zero = grid(weight, 4, size)

    def packed(rows: Tensor) -> Tensor:
        order = (0, 2, 4, 6, 1, 3, 5, 7)
        eights = [[row[at + place] for at in range(0, len(row), 8) for place in order] for row in rows.tolist()]
        return signed([words(row, 4) for row in eights])

    tensors = {"qweight": packed(codes.T), "qzeros": packed(zero.T), "scales": scale.T.contiguous()}
    return tensors, meant(codes, scale, zero, torch.arange(weight.shape[1]) // size)


def mlx(weight: Tensor, bits: int = 4, size: int = 32) -> Packed:
    codes, scale, zero = grid(weight, bits, size)
    bias = (-zero * scale.float()).half()
    wide = [each.float().repeat_interleave(size, 1) for each in (scale, bias)]
    packed = torch.tensor([words(row, bits) for row in codes.tolist()], dtype=torch.int64).to(torch.uint32)
    return {"weight": packed, "scales": scale, "biases": bias}, codes * wide[0] + wide[1]


def int8_rows(weight: Tensor) -> Packed:
    largest = weight.abs().amax(1)
    codes = (weight / largest.unsqueeze(1) * 127).round().to(torch.int8)
    tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, codes.float() * largest.unsqueeze(1) / 127


def four_bits(weight: Tensor, size: int = 64, nested: bool = False) -> Packed:
    """A made-up table of 16 values."""
    table = torch.tensor(
        [-1.0, -0.7, -0.53, -0.39, -0.28, -0.18, -0.09, 0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1]
    )
    blocks = weight.reshape(-1, size)
    scale = blocks.abs().amax(1)
    said: dict[str, Any] = {"quant_type": "nf4", "blocksize": size, "dtype": "bfloat16", "shape": list(weight.shape)}
    tensors: dict[str, Tensor] = {}
    if nested:
        meaning, inner = torch.linspace(-1, 1, 256), 256
        offset = float(scale.mean())
        outer = torch.stack([(part - offset).abs().max() for part in scale.split(inner)])
        each = outer.repeat_interleave(inner)[: scale.numel()]
        coded = ((scale - offset) / each).unsqueeze(1).sub(meaning).abs().argmin(1)
        scale = meaning[coded] * each + offset
        tensors |= {"weight.absmax": coded.to(torch.uint8), "weight.nested_absmax": outer}
        tensors["weight.nested_quant_map"] = meaning
        said |= {"nested_blocksize": inner, "nested_dtype": "float32", "nested_offset": offset}
    else:
        tensors["weight.absmax"] = scale
    codes = (blocks / scale.unsqueeze(1)).unsqueeze(-1).sub(table).abs().argmin(-1)
    flat = codes.flatten()
    tensors |= {
        "weight": (16 * flat[0::2] + flat[1::2]).to(torch.uint8).unsqueeze(1),
        "weight.quant_map": table,
        "weight.quant_state.bitsandbytes__nf4": torch.frombuffer(
            bytearray(json.dumps(said).encode()), dtype=torch.uint8
        ),
    }
    return tensors, (table[codes] * scale.unsqueeze(1)).view(weight.shape)


def mxfp4(weight: Tensor) -> Packed:
    """Experts (experts, outputs, inputs); they mean (experts, inputs, outputs)."""
    groups = weight.unflatten(-1, (-1, 32))
    exponent = (groups.abs().amax(-1) / 6).log2().ceil().int()
    factor = (2.0**exponent).unsqueeze(-1)
    codes = torch.tensor([nearest_fp4(value) for value in (groups / factor).flatten().tolist()]).view(groups.shape)
    tensors = {"blocks": (codes[..., 0::2] + 16 * codes[..., 1::2]).to(torch.uint8)}
    tensors["scales"] = (exponent + 127).to(torch.uint8)
    return tensors, (torch.tensor(FP4)[codes] * factor).flatten(-2).transpose(1, 2)
