"""Adaptive rounding with feedback between rows too (YAQA: Tseng, Sun, De Sa 2025, arXiv:2505.22988).

GPTQ counts an error D of a weight as tr(D H Dᵀ): all outputs alike and apart. Here it is tr(S D H Dᵀ), with
S = E[g gᵀ] of the distortion's gradients g at the layer's outputs: each error is made up for by the columns not yet
rounded, as in GPTQ, and by the rows not yet rounded. Rows come in tiles, whose own rows do not make up for each other;
a tile waits for those before it in its rows and in its columns, so that the tiles of an anti-diagonal are rounded
together.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import Codebook, Format
from natprec.quantizers.floating import Extent
from natprec.quantizers.gptq import Grid
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.nearest import grid_for
from natprec.quantizers.tensor import QuantizedTensor

DAMPING = 1.0
"""Share of the mean diagonal of S that is added to it: with GPTQ's 0.01, rounding is worse than GPTQ (LOG.md)."""

COLUMNS, ROWS = 64, 16
"""Of a tile."""


def output_order(moments: Tensor) -> Hessian:
    """What rows need to know of the gradients at a layer's outputs, as columns of its inputs.

    Args:
        moments: (rows, rows), Σ g gᵀ over the calibration tokens; any positive factor.
    Raises:
        ModelError: they are not finite.
    """
    return Hessian.of(moments, DAMPING)


def yaqa(
    weight: Tensor,
    inputs: Hessian,
    outputs: Hessian,
    fmt: Format,
    scale_dtype: torch.dtype,
    extent: Extent | None = None,
) -> QuantizedTensor:
    """Round a weight for least tr(S D H Dᵀ); grids are those of GPTQ.

    Args:
        weight: (rows, columns).
        inputs: of H; outputs: of S, see `output_order`.
        fmt: a format whose group size divides the columns.
        scale_dtype: the dtype in which scales are stored.
        extent: of the weight together with those that share its outer scale; default: its own.
    """
    rows = outputs.order
    scale, offset, outer = grid_for(weight.float(), fmt, scale_dtype, inputs.power, extent)
    own = None if offset is None else offset[rows].unsqueeze(0)
    grid = Grid.of(scale[rows].unsqueeze(0), own, [fmt], inputs.order)
    codes = torch.empty(weight.shape, dtype=fmt.code_dtype, device=weight.device)
    found = _round_tiles(weight.float()[rows].T[inputs.order], fmt.codebook, grid, inputs.inverse, outputs.inverse)
    codes[rows.unsqueeze(1), inputs.order] = found.T
    return QuantizedTensor.of(fmt, codes, scale, offset, outer)


def _round_tiles(weight: Tensor, codebook: Codebook, grid: Grid, across: Tensor, down: Tensor) -> Tensor:
    """Codes (columns, rows), as `codebook` encodes them.

    Args:
        weight: (columns, rows), both in the order in which they are rounded, as all that follows.
        across, down: upper Cholesky factors of the inverses of H and S.
    """
    columns, rows = weight.shape
    high, wide = -(-columns // COLUMNS), -(-rows // ROWS)
    margin = (0, wide * ROWS - rows, 0, high * COLUMNS - columns)
    target = functional.pad(weight, margin)
    scale, offset = functional.pad(grid.scale, margin, value=1.0), functional.pad(grid.offset, margin)
    across, down = _grown(across, len(target)), _grown(down, target.shape[1])
    own = [slice(start, start + ROWS) for start in range(0, target.shape[1], ROWS)]
    made_up = [torch.linalg.solve_triangular(down[each, each], down[each, each.stop :], upper=True) for each in own]
    pushed = torch.zeros_like(target)  # by earlier columns; what earlier rows push is in `target`
    codes = torch.empty(target.shape, dtype=torch.uint8 if grid.codebook else torch.int8, device=weight.device)
    for wave in range(high + wide - 1):
        numbers = range(max(0, wave - wide + 1), min(high, wave + 1))
        places = [slice(number * COLUMNS, (number + 1) * COLUMNS) for number in numbers]
        tiles = [(place, own[wave - number]) for number, place in zip(numbers, places, strict=True)]
        wanted, work, steps, origins = (
            torch.stack([whole[tile] for tile in tiles]) for whole in (target, pushed, scale, offset)
        )
        work += wanted
        factor = torch.stack([across[place, place] for place in places])
        chosen, errors = torch.empty_like(work), torch.empty_like(work)
        for i in range(COLUMNS):
            code = codebook.nearest_((work[:, i] - origins[:, i]).div_(steps[:, i]))
            chosen[:, i] = code
            value = code.mul_(steps[:, i]).add_(origins[:, i])
            torch.sub(work[:, i], value, out=errors[:, i]).div_(factor[:, i, i].unsqueeze(1))
            work[:, i + 1 :].baddbmm_(factor[:, i, i + 1 :].unsqueeze(2), errors[:, i].unsqueeze(1), alpha=-1)
            work[:, i] = value
        missed = wanted.sub_(work)
        for number, (place, rows_of) in enumerate(tiles):
            codes[place, rows_of] = codebook.encode(chosen[number])
            pushed[place.stop :, rows_of].addmm_(across[place, place.stop :].T, errors[number], alpha=-1)
            target[place, rows_of.stop :].addmm_(missed[number], made_up[rows_of.start // ROWS], alpha=-1)
    return codes[:columns, :rows]


def _grown(factor: Tensor, size: int) -> Tensor:
    """With ones on the diagonal of what is added."""
    grown = torch.eye(size, device=factor.device)
    grown[: len(factor), : len(factor)] = factor
    return grown
