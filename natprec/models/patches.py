"""What the matrix of a layer multiplies: of a Linear its inputs, of a convolution the patches of its input (im2col).

A patch has the input channels of a group times the places of the kernel, in the order of the matrix's columns; each
place of the output has one for each group. A transposed convolution multiplies the patches of its input with zeros put
between, by its kernel turned round.

Neighbouring patches overlap and say nearly the same, so that second moments are taken of some of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from natprec.models.layers import Layer
from natprec.quantizers.gram import add_grouped_products, add_products

PATCHES = 1024
"""Of each sample so many, or `PER_COLUMN` for each column where that is more, drawn from those of all places."""

PER_COLUMN = 2


def add_moments(sums: dict[str, Tensor], name: str, layer: Layer, inputs: Tensor, dtype: torch.dtype) -> None:
    """Add Σ x xᵀ of what a layer's matrix multiplies: see `natprec.quantizers.gram`.

    Args:
        sums: name → sum, of `Layer.moments`; made in `dtype` where there is none.
        inputs: of the module.
    """
    if name not in sums:
        sums[name] = inputs.new_zeros(layer.moments, dtype=dtype)
    for vectors in _vectors(layer, inputs):
        if layer.groups == 1:
            add_products(sums[name], vectors.squeeze(0))
        else:
            add_grouped_products(sums[name], vectors)


def patches(layer: Layer, inputs: Tensor, most: int | None = None) -> Tensor:
    """Those of a convolution.

    Args:
        inputs: of the module, (samples, channels, *places).
        most: of all samples together, drawn by a fixed seed; default: all.
    Returns:
        (groups, patches, columns).
    """
    inputs, stride, padding, dilation, transposed, beyond = layer.geometry(inputs)
    size, dimensions = layer.weight.shape[2:], layer.kind.dimensions
    margins = [(each, each) for each in padding]
    if transposed:
        inputs = _with_zeros_between(inputs, stride)
        reach = [step * (count - 1) for step, count in zip(dilation, size, strict=True)]
        margins = [(far - own, far - own + more) for far, own, more in zip(reach, padding, beyond, strict=True)]
        stride = (1,) * dimensions
    windows = functional.pad(inputs, [end for pair in reversed(margins) for end in pair])
    for place, (count, step, apart) in enumerate(zip(size, stride, dilation, strict=True)):
        windows = windows.unfold(2 + place, apart * (count - 1) + 1, step)[..., ::apart]
    windows = windows.movedim(1, 1 + dimensions)  # (samples, *places, channels, *kernel)
    found = _drawn(windows, dimensions + 1, most)
    if transposed:
        found = found.flip(tuple(range(2, 2 + dimensions)))
    return found.unflatten(1, (layer.groups, -1)).flatten(2).transpose(0, 1)


def _vectors(layer: Layer, inputs: Tensor) -> Iterator[Tensor]:
    """(groups, count, columns), sample by sample of a convolution."""
    if not layer.kind.dimensions:
        yield inputs.reshape(1, -1, inputs.shape[-1])
        return
    most = max(PATCHES, PER_COLUMN * layer.shape[1])
    for sample in inputs if inputs.dim() == layer.kind.dimensions + 2 else [inputs]:
        yield patches(layer, sample.unsqueeze(0), most)


def _drawn(windows: Tensor, leading: int, most: int | None) -> Tensor:
    """Of (places in `leading` dimensions, …) all, or so many: (count, …)."""
    shape = windows.shape[:leading]
    count = shape.numel()
    if most is None or count <= most:
        return windows.flatten(0, leading - 1)
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(count))[:most].sort().values
    return windows[torch.unravel_index(chosen.to(windows.device), shape)]


def _with_zeros_between(inputs: Tensor, stride: tuple[int, ...]) -> Tensor:
    """(samples, channels, *places), each place followed by stride - 1 zeros, but for the last one."""
    places = [(count - 1) * step + 1 for count, step in zip(inputs.shape[2:], stride, strict=True)]
    found = inputs.new_zeros(*inputs.shape[:2], *places)
    found[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = inputs
    return found
