"""GPTQ rounding (Frantar et al. 2022, arXiv:2210.17323, Algorithm 1).

Columns are rounded in order; each column's error is pushed onto the columns not yet rounded, so
that the layer's output changes least: min ‖(W - Q) X‖². The grid of a group is chosen when its
first column is reached, from the weights as the errors so far have left them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.formats import NumberFormat
from natprec.formats.number_format import CHANNEL
from natprec.quantizers import QuantizedTensor, choose_grid

DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to it."""

LAZY_COLUMNS = 128
"""Columns rounded before the rest of the matrix is updated, where groups do not decide it."""


def gptq(weight: Tensor, hessian: Tensor, fmt: NumberFormat, scale_dtype: torch.dtype) -> QuantizedTensor:
    """Round a weight for least output error.

    Args:
        weight: (rows, columns).
        hessian: (columns, columns), Σ x xᵀ over the calibration tokens; any positive factor.
        fmt: a format whose group size divides the columns.
        scale_dtype: the dtype in which scales are stored.
    Raises:
        ModelError: the Hessian has no Cholesky factor even with more damping (inputs not finite).
    """
    work = weight.float().T.contiguous()  # a column of the weight is a contiguous row
    columns, rows = work.shape
    inverse = _inverse_factor(hessian)
    width = LAZY_COLUMNS if fmt.group_size == CHANNEL else fmt.group_size
    codes = torch.empty(columns, rows, dtype=torch.int8, device=work.device)
    scales, zeros = [], []
    if fmt.group_size == CHANNEL:
        scale, zero = _grid(work, fmt, scale_dtype)
        scales.append(scale)
        zeros.append(zero)
    for start in range(0, columns, width):
        stop = min(start + width, columns)
        if fmt.group_size != CHANNEL:
            scale, zero = _grid(work[start:stop], fmt, scale_dtype)
            scales.append(scale)
            zeros.append(zero)
        block = work[start:stop]
        factor = inverse[start:stop, start:stop]
        errors = torch.empty_like(block)
        for i in range(stop - start):
            column = block[i]
            code = (column / scale).round_()
            if zero is not None:
                code += zero
            code.clamp_(*fmt.code_range)
            codes[start + i] = code
            value = code.sub_(zero) if zero is not None else code
            errors[i] = (column - value.mul_(scale)) / factor[i, i]
            block[i + 1 :].addr_(factor[i, i + 1 :], errors[i], alpha=-1)
        work[stop:].addmm_(inverse[start:stop, stop:].T, errors, alpha=-1)
    return QuantizedTensor(
        fmt,
        codes=codes.T.contiguous(),
        scale=torch.stack(scales, 1),
        zero_point=None if fmt.symmetric else torch.stack([z for z in zeros if z is not None], 1).to(torch.int8),
    )


def _grid(group: Tensor, fmt: NumberFormat, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Scale and zero point (rows,) of one group, given transposed: (group size, rows)."""
    scale, zero = choose_grid(group.T.contiguous().unsqueeze(1), fmt, scale_dtype)
    return scale[:, 0], None if zero is None else zero[:, 0]


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of the damped Hessian's inverse, float32."""
    hessian = hessian.double()
    diagonal = hessian.diagonal()
    mean = float(diagonal.mean())
    if mean == 0:
        return torch.eye(len(hessian), device=hessian.device)
    for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
        damped = hessian + damping * mean * torch.eye(len(hessian), dtype=torch.float64, device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True).float()
    raise ModelError("GPTQ: a layer's inputs have no positive definite Hessian (NaN or Inf?); use --rounding rtn")
