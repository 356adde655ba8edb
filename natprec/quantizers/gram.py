"""Σ v vᵀ over many vectors: a symmetric matrix, of which half is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec import native
from natprec.utils.matmul import in_bfloat16, product

COLUMNS = 256
"""Rows of the matrix that are computed at a time, from the diagonal on."""


def add_products(sums: Tensor, vectors: Tensor) -> None:
    """Add Σ v vᵀ on and above the diagonal; what is below it means nothing.

    Where products are bfloat16's vectors are rounded as the layer that is given them rounds them.

    Args:
        sums: (size, size), added to in its own dtype.
        vectors: (count, size), float32 or bfloat16.
    """
    if not vectors.numel():
        return
    narrow = vectors.dtype == torch.bfloat16 or in_bfloat16(vectors.device)
    if narrow and vectors.is_cpu and native.on_bfloat16():
        native.add_products(sums, vectors.float())
        return
    vectors = vectors.bfloat16().float() if narrow else vectors
    features = vectors.T.contiguous()
    for start in range(0, len(sums), COLUMNS):
        stop = start + COLUMNS
        sums[start:stop, start:] += product(features[start:stop], features[start:])


def add_named(sums: dict[str, Tensor], name: str, vectors: Tensor, dtype: torch.dtype) -> None:
    """Add Σ v vᵀ to the sum of a name, which is made in `dtype` where there is none: see `add_products`."""
    if name not in sums:
        sums[name] = vectors.new_zeros(vectors.shape[1], vectors.shape[1], dtype=dtype)
    add_products(sums[name], vectors)


def add_grouped_products(sums: Tensor, vectors: Tensor) -> None:
    """Add Σ v vᵀ of each group, whole: groups are many and small.

    Args:
        sums: (groups, size, size), added to in its own dtype.
        vectors: (groups, count, size).
    """
    with torch.autocast(vectors.device.type, enabled=False):  # whose products would be stored in bfloat16
        vectors = vectors.float()
        sums += vectors.mT @ vectors


def mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which only what lies on and above the diagonal is right, as float32.

    Several of them, (groups, size, size), are whole: see `add_grouped_products`.
    """
    if upper.dim() == 3:
        return upper.float()
    whole = upper.float().triu_()
    for start in range(0, len(whole), COLUMNS):
        stop = start + COLUMNS
        whole[start:stop, start:stop] += whole[start:stop, start:stop].triu(1).T
        whole[stop:, start:stop] = whole[start:stop, stop:].T
    return whole
