"""Weights as other tools pack them, back to numbers: one function for each way of packing, tensors in, float32 out.

Written after the formats' own descriptions. A weight is (rows, columns) = (outputs, inputs) unless said otherwise.

    FP8      E4M3, times the scale of its block, row or matrix                    (DeepSeek-V3, Qwen3, ModelOpt)
    NVFP4    two E2M1 a byte, low half first; scales E4M3 of 16, and one of all   (ModelOpt)
    MXFP4    two E2M1 a byte, low half first; scales 2^(s - 127) of 32            (GPT-OSS)
    GPTQ     codes of a column in 32-bit words, lowest bits first; (q - z - 1) s
    AWQ      eight codes of a row in a word, in the order 0 2 4 6 1 3 5 7; (q - z) s
    MLX      codes of a row in 32-bit words, lowest bits first; q s + bias
    NF4      two codes a byte, high half first, each times the scale of its block (bitsandbytes), FP4 too
    LLM.int8 a row times its largest magnitude / 127                              (bitsandbytes)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.formats.codebook import E2M1
from natprec.utils.json_text import from_json

WORD = 32
NVFP4_GROUP = 16
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Column of eight that the i-th code of a word holds."""


def unpacked(words: Tensor, bits: int) -> Tensor:
    """The codes in rows of words or bytes, lowest bits first: (rows, words) to int32 (rows, codes)."""
    filled = np.ascontiguousarray(words.numpy()).view(np.uint8)
    if 8 % bits == 0:
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        codes = (filled[..., None] >> shifts) & (2**bits - 1)
    else:
        ones = np.unpackbits(filled, axis=-1, bitorder="little").reshape(*filled.shape[:-1], -1, bits)
        codes = ones @ (1 << np.arange(bits))
    return torch.from_numpy(codes.reshape(*filled.shape[:-1], -1).astype(np.int32))


def halves(packed: Tensor, high_first: bool = False) -> Tensor:
    """Two codes of each byte, side by side."""
    low, high = packed & 15, packed >> 4
    return torch.stack((high, low) if high_first else (low, high), -1).flatten(-2).long()


def spread(scale: Tensor, shape: tuple[int, int], block: tuple[int, int] | None = None) -> Tensor:
    """Scales of blocks as one of each value; where the size of blocks is given, the last may be cut off."""
    rows, columns = block or (size // count for size, count in zip(shape, scale.shape, strict=True))
    return scale.repeat_interleave(rows, 0)[: shape[0]].repeat_interleave(columns, 1)[:, : shape[1]]


def from_fp8(codes: Tensor, scale: Tensor, *, block: tuple[int, int] | None) -> Tensor:
    """FP8.

    Args:
        scale: of the matrix, of rows, or of blocks, whose size is given then.
    """
    values, scale = codes.float(), scale.float()
    if block is None:
        return values * (scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(()))
    return values * spread(scale, (values.shape[0], values.shape[1]), block)


def from_nvfp4(codes: Tensor, scale: Tensor, whole: Tensor) -> Tensor:
    """NVFP4 of ModelOpt."""
    values = E2M1.decode(halves(codes))
    return values * spread(scale.float() * whole.float().reshape(()), (values.shape[0], values.shape[1]))


def from_mxfp4(blocks: Tensor, scales: Tensor) -> Tensor:
    """MXFP4 of GPT-OSS: (experts, outputs, groups, 16) to (experts, inputs, outputs), as the model holds it."""
    values = E2M1.decode(halves(blocks))
    values = torch.ldexp(values, scales.int().unsqueeze(-1) - 127)
    return values.flatten(2).transpose(1, 2).contiguous()


def from_gptq(
    codes: Tensor,
    zeros: Tensor,
    scale: Tensor,
    groups: Tensor | None = None,
    *,
    bits: int,
    group_size: int,
    stored_less: int,
) -> Tensor:
    """GPTQ.

    Args:
        groups: of each input; None: they follow one another.
        stored_less: by which zero points are less than they are meant, 1 in the first version of the format.
    """
    values = unpacked(codes.T, bits)
    zero = (unpacked(zeros, bits)[:, : values.shape[0]] + stored_less) & (2**bits - 1)
    which = torch.arange(values.shape[1]) // group_size if groups is None else groups.long()
    return (values - zero.T[:, which]) * scale.float().T[:, which]


def from_awq(codes: Tensor, zeros: Tensor, scale: Tensor, *, group_size: int) -> Tensor:
    """AWQ of 4 bits, as its `gemm` kernel reads it."""
    order = torch.tensor(AWQ_ORDER).argsort()

    def rows(words: Tensor) -> Tensor:
        return unpacked(words, 4).unflatten(1, (-1, len(order)))[..., order].flatten(1)

    each = (rows(zeros).repeat_interleave(group_size, 0), scale.float().repeat_interleave(group_size, 0))
    return ((rows(codes) - each[0]) * each[1]).T.contiguous()


def from_mlx(codes: Tensor, scale: Tensor, bias: Tensor, *, bits: int) -> Tensor:
    """MLX, `affine`."""
    values = unpacked(codes, bits)
    shape = (values.shape[0], values.shape[1])
    return values * spread(scale.float(), shape) + spread(bias.float(), shape)


def from_four_bits(
    codes: Tensor,
    scale: Tensor,
    meaning: Tensor,
    outer: Tensor | None = None,
    scale_meaning: Tensor | None = None,
    *,
    state: Mapping[str, Any],
) -> Tensor:
    """NF4 and FP4 of bitsandbytes.

    Args:
        scale: of blocks; where scales are quantized too their codes, and then `outer` scales and the codes' meaning.
        state: what `state_of` reads.
    """
    if outer is not None and scale_meaning is not None:
        wide = outer.float().repeat_interleave(int(state["nested_blocksize"]))[: scale.numel()]
        scale = scale_meaning.float()[scale.long()] * wide + float(state["nested_offset"])
    values = meaning.float()[halves(codes.flatten(), high_first=True)]
    return (values * scale.float().repeat_interleave(int(state["blocksize"]))[: values.numel()]).view(*state["shape"])


def state_of(written: Tensor) -> dict[str, Any]:
    """What bitsandbytes wrote of a weight, as JSON in bytes."""
    found: dict[str, Any] = from_json(bytes(written.tolist()))
    return found


def from_int8(codes: Tensor, largest: Tensor) -> Tensor:
    """LLM.int8 of bitsandbytes."""
    return codes.float() * (largest.float() / 127).unsqueeze(1)
