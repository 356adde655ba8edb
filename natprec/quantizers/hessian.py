"""The inputs of a layer, as GPTQ needs them (Frantar et al. 2022, arXiv:2210.17323): their order, and a factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.utils.launches import fetched

DAMPING = 0.01
"""Share of the Hessian's mean diagonal that is added to it."""

LOOKUP_DAMPING = 0.1
"""The same of the moments of gradients that round an embedding: of 0.01 to 3 the best for one model (LOG.md,
2026-12-01)."""

INVERTED_ROWS = 128
"""Of a factor, inverted at a time."""


@dataclass(frozen=True)
class Hessian:
    """What GPTQ needs to know of the inputs of a layer, or of all layers that share them.

    A convolution of several groups has all of it for each group, along a first dimension; its rows are those of one
    group after the other, equally many.

    Attributes:
        order: (columns,) by falling input power.
        inverse: (columns, columns), upper Cholesky factor of the ordered, damped Hessian's inverse.
        power: (columns,), the Hessian's diagonal, in the original order.
    """

    order: Tensor
    inverse: Tensor
    power: Tensor

    @property
    def cost(self) -> Tensor:
        """(columns,): what an error counts at each, between `power` and what later columns cannot make up for."""
        left = torch.empty_like(self.power)
        left[self.order] = self.inverse.diagonal().square().reciprocal()
        return (self.power * left).sqrt()

    @property
    def groups(self) -> int:
        """Of a convolution, that have inputs of their own."""
        return 1 if self.order.dim() == 1 else len(self.order)

    def of_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Order and power by row: (columns,) each where all of the `count` rows share them, else (rows, columns)."""
        if self.groups == 1:
            return self.order, self.power
        return tuple(each.repeat_interleave(count // self.groups, 0) for each in (self.order, self.power))  # type: ignore[return-value]

    def scaled(self, columns: Tensor) -> Hessian:
        """For weights whose columns are multiplied by `columns` (columns,), and inputs divided by it."""
        return Hessian(self.order, self.inverse * columns[self.order], self.power / columns.square())

    @classmethod
    def of(cls, hessian: Tensor, damping: float = DAMPING) -> Hessian:
        """Factorize.

        Args:
            hessian: (columns, columns), Σ x xᵀ over the calibration tokens; any positive factor. Or (groups, columns,
                columns).
            damping: share of its mean diagonal that is added to it.
        Raises:
            ModelError: it has no Cholesky factor even with more damping (inputs not finite).
        """
        return cls.of_all([hessian], damping)[0]

    @classmethod
    def of_all(cls, hessians: Sequence[Tensor], damping: float | Sequence[float] = DAMPING) -> list[Hessian]:
        """The same of several; the device is waited for once, unless one of them needs more damping.

        Args:
            damping: of all, or of each.
        """
        shares = [damping] * len(hessians) if isinstance(damping, float) else damping
        tried = [_tried(hessian, share) for hessian, share in zip(hessians, shares, strict=True)]
        said = [float(each) for each in fetched([each for _, mean, failed in tried for each in (mean, failed)])]
        found = []
        for (one, _, _), hessian, share, mean, failed in zip(
            tried, hessians, shares, said[::2], said[1::2], strict=True
        ):
            if mean == 0 and hessian.dim() == 2:
                found.append(cls(one.order, torch.eye(len(hessian), device=hessian.device), one.power))
            elif failed or not math.isfinite(mean):
                found.append(_more_damped(hessian, share if math.isfinite(mean) else math.nan))
            else:
                found.append(one)
        return found


def _tried(hessian: Tensor, damping: float) -> tuple[Hessian, Tensor, Tensor]:
    """With what it is worth if the other two say so: the mean of its diagonal, and whether there is no factor."""
    if hessian.dim() == 3:
        return _tried_groups(hessian, damping)
    power = hessian.diagonal().clone()
    mean, order = power.mean(), power.argsort(descending=True, stable=True)
    last = order.flip(0)
    factor, failed = _factor(hessian[last.unsqueeze(1), last].double(), damping * mean.double())
    # H = R Rᵀ with R upper, so that H⁻¹ = Uᵀ U with U = R⁻¹; R is the factor turned round
    factor = factor.float()  # in place of the one in float64, which may be large
    return Hessian(order, _inverse_turned_round(factor), power), mean, failed


def _tried_groups(hessians: Tensor, damping: float) -> tuple[Hessian, Tensor, Tensor]:
    """The same of a convolution's groups, (groups, columns, columns), each damped by its own mean.

    A group that nothing reached has the identity for a factor.
    """
    power = hessians.diagonal(dim1=-2, dim2=-1).clone()
    mean, order = power.double().mean(-1, keepdim=True), power.argsort(dim=-1, descending=True, stable=True)
    last = order.flip(-1)
    ordered = hessians.gather(1, last.unsqueeze(2).expand_as(hessians)).gather(2, last.unsqueeze(1).expand_as(hessians))
    added = torch.where(mean == 0, 1.0, damping * mean).expand(power.shape)
    factor, failed = torch.linalg.cholesky_ex(ordered.double() + torch.diag_embed(added))
    unit = torch.eye(power.shape[1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, unit, upper=False).flip(1, 2).float()
    return Hessian(order, inverse, power), mean.mean(), failed.amax()


def _more_damped(hessian: Tensor, damping: float) -> Hessian:
    for share in (10 * damping, 100 * damping) if math.isfinite(damping) else ():
        found, _, failed = _tried(hessian, share)
        if not failed:
            return found
    raise ModelError("GPTQ: a layer's inputs have no positive definite Hessian (NaN or Inf?); use --rounding rtn")


def _factor(matrix: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Lower Cholesky factor of a symmetric matrix, which it overwrites, and whether there is none."""
    matrix.diagonal().add_(damping)
    factor, failed = matrix.mT, torch.empty((), dtype=torch.int32, device=matrix.device)  # LAPACK's order of columns
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    return factor, failed


def _inverse_turned_round(lower: Tensor) -> Tensor:
    """L⁻¹ with its rows and its columns in reverse, of L (columns, columns), which it overwrites.

    Some rows at a time: they need the inverse of those above, which has their place already.
    """
    size = len(lower)
    result = torch.zeros(size, size, device=lower.device)
    for start in range(0, size, INVERTED_ROWS):
        stop = min(start + INVERTED_ROWS, size)
        unit = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
        own = torch.linalg.solve_triangular(lower[start:stop, start:stop], unit, upper=False)
        lower[start:stop, :start] = -own @ (lower[start:stop, :start] @ lower[:start, :start])
        lower[start:stop, start:stop] = own
        result[size - stop : size - start, size - stop :] = lower[start:stop, :stop].flip(0, 1)
    return result
