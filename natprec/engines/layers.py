"""A layer as an engine sees it: what a checkpoint says of its operands, its shape, and what comes of them.

An `Operand` is compressed-tensors' own description, so that checkpoints of all tools can be told about, also those
whose formats natprec has no use for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from natprec.errors import InputError
from natprec.formats.compressed_tensors import activation_format, weight_format

UNQUANTIZED = "16 bits"
"""What an operand says and runs that is in the model's own dtype."""


@dataclass(frozen=True)
class Operand:
    """A description of weights or inputs; attributes as those of compressed-tensors' `QuantizationArgs`.

    Attributes:
        name: of natprec's format for it; of others made of what is said.
        zeros: whether there are zero points.
        block: rows and columns that share a scale.
    """

    name: str
    bits: int
    type: str
    strategy: str
    group: int | None
    zeros: bool
    dynamic: bool
    scale_dtype: str | None = None
    block: tuple[int, int] | None = None
    actorder: str | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any], weights: bool) -> Operand:
        """From config.json.

        Raises:
            InputError: no number of bits, or a strategy that is none.
        """
        bits, size = described.get("num_bits"), described.get("group_size")
        strategy = described.get("strategy") or ("group" if size and size > 0 else "channel" if size else "tensor")
        if not isinstance(bits, int) or not isinstance(strategy, str):
            raise InputError(f"config.json describes an operand of {bits!r} bits by {strategy!r}; expected numbers")
        block = described.get("block_structure")
        kind = str(described.get("type") or "int")
        order = described.get("actorder")
        return cls(
            name=_name(described, weights, f"{kind}{bits}-{strategy}{size if strategy == 'group' else ''}"),
            bits=bits,
            type=kind,
            strategy=strategy,
            group=size if isinstance(size, int) and size > 0 else None,
            zeros=described.get("symmetric") is False,
            dynamic=bool(described.get("dynamic")),
            scale_dtype=described.get("scale_dtype"),
            block=None if block is None else (int(block[0]), int(block[1])),
            actorder=order if isinstance(order, str) else None,
        )

    @property
    def nvfp4(self) -> bool:
        """Whether it is NVIDIA's four bits: groups of 16 under a scale of their own tensor."""
        return (self.type, self.bits, self.group) == ("float", 4, 16) and self.strategy == "tensor_group"

    def micro(self, bits: int) -> bool:
        """Whether it is OCP's microscaling format of so many bits."""
        return (self.type, self.bits, self.group, self.zeros) == ("float", bits, 32, False)


def _name(described: Mapping[str, Any], weights: bool, otherwise: str) -> str:
    try:
        return (weight_format(described) if weights else activation_format(described)).name
    except InputError:
        return otherwise + ("" if described.get("symmetric") is not False else "-asym")


@dataclass(frozen=True)
class Layer:
    """One matrix of an engine, made of one weight of a checkpoint or several that it fuses.

    Attributes:
        name: the engine's.
        role: how it is used; 'experts' are all of a layer.
        rows: of each weight in it; `columns` of all of them.
        weight, inputs: what the checkpoint says; None: as they are in the model's dtype.
        container: the checkpoint's `format` for it, for example `pack-quantized`.
        dtype: of the model: 'bfloat16' or 'float16'.
        wrong: why no engine reads it as one matrix; empty where nothing is.
        members: the checkpoint's modules that it is made of.
    """

    name: str
    role: Literal["linear", "head", "embedding", "experts"]
    rows: tuple[int, ...]
    columns: int
    weight: Operand | None
    inputs: Operand | None = None
    container: str = ""
    dtype: str = "bfloat16"
    wrong: str = ""
    members: tuple[str, ...] = ()

    @property
    def says(self) -> str:
        """Its weight, and behind a slash its inputs where they are rounded."""
        return pair(self.weight.name if self.weight else None, self.inputs.name if self.inputs else None)


@dataclass(frozen=True)
class Run:
    """What becomes of a layer.

    Attributes:
        runs: the arithmetic, as `Layer.says` writes it; None: the engine cannot run it.
        kernel: the engine's name of what multiplies; None likewise.
        note: why, or what to know.
    """

    runs: str | None
    kernel: str | None
    note: str = ""


def pair(weight: str | None, inputs: str | None) -> str:
    """For example `int4-g64` or `fp8-channel/fp8-token`."""
    return (weight or UNQUANTIZED) + (f"/{inputs}" if inputs else "")
