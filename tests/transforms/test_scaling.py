"""Channel scales: less rounding error where columns differ, none of it where they do not."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import integer
from natprec.quantizers import quantize
from natprec.quantizers.gptq import Judged, gptq_shares
from natprec.quantizers.hessian import Hessian
from natprec.transforms import Gauge, channel_scales

FOUR = integer(4, 32)
PLAIN = Gauge("fused group", "norm", produced=64)


def uneven(rows: int = 48, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with a few large columns that meet small inputs, and the inputs (tokens, columns)."""
    draw = torch.Generator().manual_seed(seed)
    weight, inputs = torch.randn(rows, 64, generator=draw), torch.randn(512, 64, generator=draw)
    weight[:, ::16] *= 20
    inputs[:, ::16] /= 20
    return weight, inputs


def gradients(inputs: Tensor) -> Tensor:
    """(sequences, rows, columns), in the directions that inputs have."""
    return torch.randn(4, 48, len(inputs), generator=torch.Generator().manual_seed(3)) @ inputs


def output_error(weight: Tensor, inputs: Tensor, scale: Tensor) -> float:
    rounded = quantize(weight * scale, FOUR, torch.float32).dequantize() / scale
    return float((inputs @ (rounded - weight).T).square().mean())


def test_uneven_columns_are_evened_out() -> None:
    weight, inputs = uneven()
    scale = channel_scales([weight], inputs.square().sum(0), FOUR, PLAIN)
    assert scale.shape == (64,)
    assert (scale[::16] < 0.5 * scale[1::16]).all()
    assert output_error(weight, inputs, scale) < 0.3 * output_error(weight, inputs, torch.ones(64))


def test_even_columns_stay_about_as_they_are() -> None:
    draw = torch.Generator().manual_seed(2)
    weight, power = torch.randn(256, 64, generator=draw), torch.ones(64)
    scale = channel_scales([weight], power, FOUR, PLAIN)
    assert float(scale.max() / scale.min()) < 1.5


def test_one_factor_for_all_readers_of_a_channel() -> None:
    weight, inputs = uneven()
    gauge = Gauge("fused group", "values", produced=32, head=16)
    scale = channel_scales([weight], inputs.square().sum(0), FOUR, gauge)
    assert scale.shape == (32,)
    assert gauge.channels(64).tolist() == [*range(16), *range(16), *range(16, 32), *range(16, 32)]
    assert (scale[::16] < 0.5 * scale[1::16]).all()


def test_layers_of_a_fused_group_count_alike() -> None:
    """However large their weights: the scales are those of the shape, not of the size."""
    (one, inputs), (two, _) = uneven(), uneven(seed=1)
    power = inputs.square().sum(0)
    torch.testing.assert_close(
        channel_scales([one, two], power, FOUR, PLAIN), channel_scales([one, 1000 * two], power, FOUR, PLAIN)
    )


def test_gptq_leaves_less_of_rescaled_columns() -> None:
    weight, inputs = uneven()
    hessian = inputs.T @ inputs
    order = Hessian.of(hessian)
    columns = channel_scales([weight], order.cost, FOUR, PLAIN)
    judged = Judged(weight, gradients(inputs))
    plain, scaled = gptq_shares([judged], order, [FOUR], torch.float32, [None, columns]).flatten().tolist()
    assert scaled < 0.5 * plain


def test_a_power_of_two_for_all_columns_changes_nothing() -> None:
    weight, inputs = uneven()
    hessian = inputs.T @ inputs
    order = Hessian.of(hessian)
    judged = Judged(weight, gradients(inputs))
    found = gptq_shares([judged], order, [FOUR], torch.float32, [None, torch.full((64,), 4.0)])[0]
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=0)


def test_a_weight_of_zeros_keeps_its_scales() -> None:
    assert torch.equal(channel_scales([torch.zeros(48, 64)], torch.ones(64), FOUR, PLAIN), torch.ones(64))
