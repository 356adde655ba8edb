"""Which kernel a layer gets, and why: a table, tried from the top."""

from __future__ import annotations

from natprec.errors import ModelError
from natprec.runtime.kernels.cpu import Dequantize, Int4Pack, Int8Inputs, Int8Pack, Planes
from natprec.runtime.kernels.cuda import Triton, TritonInt8
from natprec.runtime.kernels.floats import DequantizeFloats
from natprec.runtime.kernels.kernel import Kernel, Layer

KERNELS: dict[str, tuple[Kernel, ...]] = {
    "cpu": (Int8Inputs(), Planes(), Int8Pack(), Int4Pack(), Dequantize(), DequantizeFloats()),
    "cuda": (TritonInt8(), Triton(), Dequantize(), DequantizeFloats()),
}
"""Type of device → its kernels, the preferred first; docs/runtime.md has the timings that order those of the CPU."""


def choose(layer: Layer, device: str = "cpu", kernels: tuple[Kernel, ...] | None = None) -> tuple[Kernel, str]:
    """The first kernel that runs a layer, and why none of those before it does.

    Args:
        layer: what has to run.
        device: a key of `KERNELS`.
        kernels: instead of the device's own, for comparing them.
    Raises:
        ModelError: none runs it.
    """
    refused: list[str] = []
    for kernel in KERNELS.get(device, ()) if kernels is None else kernels:
        known = isinstance(layer.format.codebook, kernel.codebooks)
        cause = kernel.refuses(layer) if known else f"has no {type(layer.format.codebook).__name__.lower()} codes"
        if not cause:
            return kernel, "; ".join(refused)
        refused.append(f"not {kernel.name}: {cause}")
    raise ModelError(
        f"no kernel on {device!r} runs a layer of {layer.rows} × {layer.columns} in {layer.name} "
        f"({'; '.join(refused) or 'there are none'}); run the checkpoint on cpu, or in vLLM"
    )
