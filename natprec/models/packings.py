"""Which tensors of a module make a weight, by the method that its checkpoint names; only headers are looked at.

A module whose tensors are not those of the method, or in a variant that is not known here, gives nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from natprec.errors import ModelError, first_line
from natprec.models import foreign_codes as codes
from natprec.models.headers import Header

Own = Mapping[str, Header]
"""A module's tensors."""

Said = Mapping[str, Any]
"""What the checkpoint says of its quantization."""

STATE = "weight.quant_state.bitsandbytes__"


@dataclass(frozen=True)
class Packed:
    """A packed weight.

    Attributes:
        leaf: what it is called dense.
        shape: of the dense one.
        kind: for users.
        parts: tensors of the module that it is made of.
        unpack: makes it of them, in this order.
        beside: tensors that say no more than is known.
    """

    leaf: str
    shape: tuple[int, ...]
    kind: str
    parts: tuple[str, ...]
    unpack: Callable[..., Tensor]
    beside: tuple[str, ...] = ()


def _fp8(own: Own, said: Said, module: str) -> Iterator[Packed]:
    weight = own.get("weight")
    scales = [leaf for leaf in ("weight_scale_inv", "weight_scale") if leaf in own]
    if weight is None or weight.dtype not in ("F8_E4M3", "F8_E5M2") or len(weight.shape) != 2 or len(scales) != 1:
        return
    scale, size, block = own[scales[0]], said.get("weight_block_size"), None
    if scale.elements != 1 and scale.shape not in ((weight.shape[0],), (weight.shape[0], 1)):
        if not (isinstance(size, list) and len(size) == 2 and all(isinstance(each, int) and each > 0 for each in size)):
            return
        block = (size[0], size[1])
        _refuse_other_shape(
            module, scales[0], scale, tuple(-(-a // b) for a, b in zip(weight.shape, block, strict=True))
        )
    unpack = partial(codes.from_fp8, block=block)
    yield Packed("weight", weight.shape, "FP8", ("weight", scales[0]), unpack)


def _nvfp4(own: Own, said: Said, module: str) -> Iterator[Packed]:
    parts = ("weight", "weight_scale", "weight_scale_2")
    if "weight_scale_2" not in own:
        yield from _fp8(own, said, module)
    elif _all_in(own, parts) and own["weight"].dtype == "U8" and len(own["weight"].shape) == 2:
        rows, half = own["weight"].shape
        if own["weight_scale"].dtype == "F8_E4M3":
            _refuse_other_shape(module, "weight_scale", own["weight_scale"], (rows, 2 * half // codes.NVFP4_GROUP))
            yield Packed("weight", (rows, 2 * half), "NVFP4", parts, codes.from_nvfp4)


def _mxfp4(own: Own, said: Said, module: str) -> Iterator[Packed]:
    for leaf, blocks in own.items():
        name = leaf.removesuffix("_blocks")
        scales = own.get(f"{name}_scales")
        if name == leaf or scales is None or {blocks.dtype, scales.dtype} != {"U8"} or len(blocks.shape) != 4:
            continue
        experts, rows, groups, size = blocks.shape
        _refuse_other_shape(module, f"{name}_scales", scales, blocks.shape[:3])
        yield Packed(name, (experts, 2 * groups * size, rows), "MXFP4", (leaf, f"{name}_scales"), codes.from_mxfp4)


def _gptq(own: Own, said: Said, module: str) -> Iterator[Packed]:
    bits, size = said.get("bits"), said.get("group_size")
    less = {"gptq": 1, "gptq_v2": 0}.get(str(said.get("checkpoint_format") or "gptq"))
    if less is None or bits not in (2, 3, 4, 8) or not isinstance(size, int) or not _all_in(own, WORDS):
        return
    rows, columns = own["scales"].shape[-1], own["qweight"].shape[0] * codes.WORD // bits
    each = size if size > 0 else columns
    _refuse_other_shape(module, "scales", own["scales"], (-(-columns // each), rows))
    if "g_idx" in own:
        _refuse_other_shape(module, "g_idx", own["g_idx"], (columns,))
    unpack = partial(codes.from_gptq, bits=bits, group_size=each, stored_less=less)
    parts = (*WORDS, "g_idx") if "g_idx" in own else WORDS
    yield Packed("weight", (rows, columns), f"GPTQ, {bits} bits", parts, unpack)


def _awq(own: Own, said: Said, module: str) -> Iterator[Packed]:
    bits, size = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size"))
    version = str(said.get("version") or "gemm").lower()
    if bits != 4 or version != "gemm" or not isinstance(size, int) or not _all_in(own, WORDS):
        return
    columns, rows = own["qweight"].shape[0], own["scales"].shape[-1]
    each = size if size > 0 else columns
    _refuse_other_shape(module, "scales", own["scales"], (columns // each, rows))
    _refuse_other_shape(module, "qweight", own["qweight"], (columns, rows * bits // codes.WORD))
    yield Packed("weight", (rows, columns), "AWQ, 4 bits", WORDS, partial(codes.from_awq, group_size=each))


def _mlx(own: Own, said: Said, module: str) -> Iterator[Packed]:
    other = said.get(module)
    here = other if isinstance(other, dict) else said
    bits, size, parts = here.get("bits"), here.get("group_size"), ("weight", "scales", "biases")
    if str(here.get("mode") or "affine") != "affine" or not isinstance(size, int) or size < 1:
        return
    if bits not in (2, 3, 4, 5, 6, 8) or not _all_in(own, parts) or own["weight"].dtype != "U32":
        return
    rows, words = own["weight"].shape if len(own["weight"].shape) == 2 else (0, 0)
    columns = words * codes.WORD // bits
    for leaf in parts[1:]:
        _refuse_other_shape(module, leaf, own[leaf], (rows, columns // size))
    yield Packed("weight", (rows, columns), f"MLX, {bits} bits", parts, partial(codes.from_mlx, bits=bits))


def _bitsandbytes(own: Own, said: Said, module: str) -> Iterator[Packed]:
    weight, state = own.get("weight"), next((leaf for leaf in own if leaf.startswith(STATE)), None)
    if weight is not None and state is not None and _all_in(own, FOUR_BITS):
        try:
            described = codes.state_of(own[state].read(joined(module, state)))
            shape = tuple(int(size) for size in described["shape"])
            kind = f"bitsandbytes {str(described['quant_type']).upper()}"
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise unlike(joined(module, state), own[state].file, first_line(error)) from error
        parts = (*FOUR_BITS, *NESTED) if _all_in(own, NESTED) else FOUR_BITS
        yield Packed("weight", shape, kind, parts, partial(codes.from_four_bits, state=described), (state,))
    elif weight is not None and weight.dtype == "I8" and "SCB" in own:
        beside = ("weight_format",) if "weight_format" in own else ()
        yield Packed("weight", weight.shape, "bitsandbytes INT8", ("weight", "SCB"), codes.from_int8, beside)


WORDS = ("qweight", "qzeros", "scales")
FOUR_BITS = ("weight", "weight.absmax", "weight.quant_map")
NESTED = ("weight.nested_absmax", "weight.nested_quant_map")

READERS: dict[str, Callable[[Own, Said, str], Iterator[Packed]]] = {
    "fp8": _fp8, "fbgemm_fp8": _fp8, "modelopt": _nvfp4, "modelopt_fp4": _nvfp4, "nvfp4": _nvfp4, "mxfp4": _mxfp4,
    "gptq": _gptq, "awq": _awq, "mlx": _mlx, "bitsandbytes": _bitsandbytes,
}  # fmt: skip
"""Method, as a description names it → how a module's tensors make its weights."""


def joined(module: str, leaf: str) -> str:
    """The name of a module's tensor."""
    return f"{module}.{leaf}".removeprefix(".")


def unlike(key: str, file: Path, what: str) -> ModelError:
    """The error for a tensor that is not what its checkpoint says of it."""
    return ModelError(
        f"tensor {key!r} of {str(file)!r} does not fit what its folder says of the quantization ({what}); download it "
        "again, or use the original checkpoint that it was made from, in 16 bits"
    )


def _all_in(own: Own, parts: tuple[str, ...]) -> bool:
    return all(part in own for part in parts)


def _refuse_other_shape(module: str, leaf: str, header: Header, wanted: tuple[int, ...]) -> None:
    if header.shape != wanted:
        raise unlike(joined(module, leaf), header.file, f"{header.shape} in place of {wanted}")
