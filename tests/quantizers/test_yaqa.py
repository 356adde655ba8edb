"""YAQA: rounding with feedback along rows and columns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natprec.formats import Format, integer
from natprec.quantizers.gptq import gptq
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.yaqa import DAMPING, output_order, yaqa


def moments(size: int, seed: int, mixed: float = 1.0) -> Tensor:
    """Second moments of vectors whose entries have much in common."""
    generator = torch.Generator().manual_seed(seed)
    mixing = mixed * torch.randn(size, size, generator=generator) / size**0.5 + torch.eye(size)
    vectors = torch.randn(8 * size, size, generator=generator) @ mixing @ mixing
    return vectors.T @ vectors


def damped(outputs: Tensor) -> Tensor:
    return outputs + DAMPING * outputs.diagonal().mean() * torch.eye(len(outputs))


def loss(errors: Tensor, inputs: Tensor, outputs: Tensor) -> float:
    return float(((damped(outputs) @ errors @ inputs) * errors).sum())


@pytest.mark.parametrize(
    ("shape", "fmt"),
    [
        ((96, 128), integer(3, 32)),
        ((100, 90), integer(3, -1, symmetric=False)),  # neither a whole number of tiles
        ((8, 64), integer(2, 64)),  # one tile
        ((192, 64), integer(4, 64)),
    ],
)
def test_its_own_loss_is_less_than_gptqs(shape: tuple[int, int], fmt: Format) -> None:
    rows, columns = shape
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    inputs, outputs = moments(columns, 1), moments(rows, 2)
    order = Hessian.of(inputs)
    found = yaqa(weight, order, output_order(outputs), fmt, torch.float32)
    plain = gptq(weight, order, fmt, torch.float32)
    assert torch.equal(found.scale, plain.scale)
    low, high = fmt.code_range
    assert low <= int(found.codes.min())
    assert int(found.codes.max()) <= high
    ratio = loss(found.dequantize() - weight, inputs, outputs) / loss(plain.dequantize() - weight, inputs, outputs)
    assert ratio < (0.95 if rows > 16 else 1.0001)


@pytest.mark.parametrize("shape", [(48, 64), (20, 96)])
def test_outputs_that_have_nothing_in_common_leave_gptq(shape: tuple[int, int]) -> None:
    """With a diagonal S no row can make up for another, in whichever order they come."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    order = Hessian.of(moments(shape[1], 4))
    outputs = output_order(torch.diag(torch.linspace(1, 5, shape[0])))
    fmt = integer(3, 32)
    assert torch.equal(
        yaqa(weight, order, outputs, fmt, torch.float32).codes, gptq(weight, order, fmt, torch.float32).codes
    )


def test_each_weight_is_rounded_from_what_the_earlier_ones_left() -> None:
    """One weight after the other, in float64, from the definition: the minimum over all later tiles and columns."""
    rows, columns = 40, 64
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))
    inputs, outputs = moments(columns, 6, 0.3), moments(rows, 7, 0.3)
    fmt = integer(4, 64)
    order, down = Hessian.of(inputs), output_order(outputs)
    found = yaqa(weight, order, down, fmt, torch.float32)
    h = inputs.double() + 0.01 * inputs.diagonal().mean() * torch.eye(columns)
    s = damped(outputs).double()
    values = weight.double().clone()
    tiles = [down.order[start : start + 16] for start in range(0, rows, 16)]
    for number, tile in enumerate(tiles):
        later = torch.cat(tiles[number + 1 :]) if number + 1 < len(tiles) else None
        wanted = values[tile].clone()
        for place, column in enumerate(order.order):
            scale = found.scale[tile, 0]
            value = (values[tile, column] / scale).round().clamp(*fmt.code_range) * scale
            missed, values[tile, column] = values[tile, column] - value, value
            rest = order.order[place + 1 :]
            if len(rest):
                values[tile.unsqueeze(1), rest] += missed.unsqueeze(1) * _made_up(h, column.view(1), rest)
        if later is not None:
            # what is left of the rows not yet rounded is the minimum of tr(S D H Dᵀ) for the errors of this tile
            values[later] += _made_up(s, tile, later).T @ (wanted - values[tile])
    assert float((found.dequantize().double() - values).abs().max()) < 1e-4


def _made_up(curvature: Tensor, done: Tensor, rest: Tensor) -> Tensor:
    """(done, rest): by how much those not rounded move for each unit that those rounded miss."""
    inverse = torch.linalg.inv(curvature[rest][:, rest])
    return curvature[done][:, rest] @ inverse
