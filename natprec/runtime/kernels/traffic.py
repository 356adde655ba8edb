"""Bytes that a product moves, counted from its shape, and the time that they would take: a model, not a measurement.

Fusing (T12): an epilogue outside the kernel reads an M × N float32 accumulator that the product stored, 4 + 4 bytes
per element. Inside, it never leaves the registers, so 8·M·N bytes are saved, whatever else is read or written.
"""

from __future__ import annotations

from dataclasses import dataclass

from natprec.formats import Format
from natprec.runtime.kernels.epilogue import Epilogue

FLOAT, ACCUMULATOR, CODE = 2, 4, 1
"""Bytes of an activation, of an accumulator, of an int8 code."""


@dataclass(frozen=True)
class Product:
    """x (tokens, columns) times a weight (rows, columns), then an epilogue.

    Attributes:
        coded: activations are int8 codes with a scale per token.
        biased: the epilogue adds a 16-bit bias.
    """

    tokens: int
    rows: int
    columns: int
    format: Format
    epilogue: Epilogue
    coded: bool = False
    biased: bool = False

    def read(self) -> int:
        """Bytes that any execution reads once: inputs, weight, and the epilogue's tensors."""
        inputs = self.tokens * (self.columns * CODE + ACCUMULATOR if self.coded else self.columns * FLOAT)
        tensors = (self.epilogue.gated + self.epilogue.residual) * self.tokens * self.rows * FLOAT
        weight = self.format.stored_bytes(self.rows, self.columns)
        return inputs + weight + tensors + self.biased * self.rows * FLOAT

    def written(self) -> int:
        """Bytes of the result."""
        return self.tokens * self.rows * (FLOAT if self.epilogue.output_scale is None else CODE)

    def bytes_moved(self, fused: bool) -> int:
        """All bytes between memory and the chip; with a separate epilogue the accumulator goes out and comes back."""
        accumulator = 0 if fused else 2 * ACCUMULATOR * self.tokens * self.rows
        return self.read() + self.written() + accumulator

    def operations(self) -> int:
        """Multiplications and additions of the product."""
        return 2 * self.tokens * self.rows * self.columns


@dataclass(frozen=True)
class Machine:
    """Published peaks of a GPU: bytes per second, dense operations per second beside 16-bit and 8-bit activations."""

    name: str
    bandwidth: float
    float_operations: float
    code_operations: float


H100 = Machine("H100 SXM", 3.35e12, 989e12, 1979e12)
H200 = Machine("H200 SXM", 4.8e12, 989e12, 1979e12)
"""NVIDIA's datasheets, dense."""


def modelled_seconds(product: Product, machine: Machine, fused: bool) -> float:
    """The roofline: the longer of moving all bytes and doing all operations at the machine's peaks. *Modelled*."""
    peak = machine.code_operations if product.coded else machine.float_operations
    return max(product.bytes_moved(fused) / machine.bandwidth, product.operations() / peak)
