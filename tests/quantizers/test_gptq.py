"""GPTQ: less output error than rounding to nearest, and the same codes where inputs are unrelated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from natprec import native
from natprec.errors import ModelError
from natprec.formats import CHANNEL, Format, integer
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import SHARE_ROWS, Judged, gptq, gptq_shares, judged_rows
from natprec.quantizers.grid_search import choose_grid
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.integer import round_to_grid

FORMATS = [
    integer(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (32, CHANNEL) for symmetric in (True, False)
]


def weight(rows: int = 48, columns: int = 160) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def inputs(columns: int = 160, count: int = 600) -> Tensor:
    """Correlated, of unequal size: a few directions carry most."""
    draw = torch.Generator().manual_seed(1)
    mixed = torch.randn(count, 24, generator=draw) @ torch.randn(24, columns, generator=draw)
    return mixed * torch.linspace(0.2, 3, columns) + 0.3 * torch.randn(count, columns, generator=draw)


def output_error(value: QuantizedTensor, original: Tensor, seen: Tensor) -> float:
    return float(((value.dequantize() - original) @ seen.T).square().sum())


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_less_output_error_than_nearest(fmt: Format) -> None:
    original, seen = weight(), inputs()
    before = original.clone()
    rounded = gptq(original, Hessian.of(seen.T @ seen), fmt, torch.bfloat16)
    nearest = quantize(original, fmt, torch.bfloat16)
    assert torch.equal(original, before)
    assert output_error(rounded, original, seen) < 0.7 * output_error(nearest, original, seen)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("factor", [1.0, 1e-6, 1e6])
def test_unrelated_inputs_give_the_nearest_codes(fmt: Format, factor: float) -> None:
    """On the grid that is best where all inputs count alike."""
    rounded = gptq(weight(), Hessian.of(factor * torch.eye(160)), fmt, torch.bfloat16)
    grouped = weight().reshape(48, fmt.groups(160), -1)
    scale, offset = choose_grid(grouped, fmt, torch.bfloat16, torch.ones(grouped.shape[1:]))
    assert torch.equal(
        rounded.codes,
        round_to_grid(grouped, [fmt], scale[None], None if offset is None else offset[None])
        .view(48, 160)
        .to(torch.int8),
    )
    assert torch.equal(rounded.scale, scale)
    if offset is not None:
        assert rounded.zero_point is not None
        assert torch.equal(rounded.zero_point * -scale, offset)


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_result_is_on_its_grid(fmt: Format) -> None:
    seen = inputs()
    rounded = gptq(weight(), Hessian.of(seen.T @ seen), fmt, torch.float16)
    low, high = fmt.code_range
    assert rounded.codes.shape == (48, 160)
    assert rounded.codes.dtype == torch.int8
    assert low <= int(rounded.codes.min()) <= int(rounded.codes.max()) <= high
    assert rounded.scale.shape == (48, fmt.groups(160))
    assert torch.equal(rounded.scale.half().float(), rounded.scale)
    assert (rounded.zero_point is None) == fmt.symmetric


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda fmt: fmt.name)
def test_inputs_that_are_always_zero(fmt: Format) -> None:
    seen = inputs()
    seen[:, [0, 5, 31, 159]] = 0
    rounded = gptq(weight(), Hessian.of(seen.T @ seen), fmt, torch.bfloat16)
    assert torch.isfinite(rounded.dequantize()).all()
    assert output_error(rounded, weight(), seen) < output_error(quantize(weight(), fmt, torch.bfloat16), weight(), seen)


def test_no_input_at_all_is_rounding_to_nearest() -> None:
    fmt = integer(4, 32)
    rounded = gptq(weight(), Hessian.of(torch.zeros(160, 160)), fmt, torch.bfloat16)
    assert torch.equal(rounded.codes, quantize(weight(), fmt, torch.bfloat16).codes)


def test_fewer_tokens_than_columns() -> None:
    seen = inputs(count=5)
    rounded = gptq(weight(), Hessian.of(seen.T @ seen), integer(4, 32), torch.bfloat16)
    nearest = quantize(weight(), integer(4, 32), torch.bfloat16)
    assert output_error(rounded, weight(), seen) < output_error(nearest, weight(), seen)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [(0, 0), (3, 2)])
def test_hessian_that_is_not_finite(bad: float, place: tuple[int, int]) -> None:
    seen = inputs()
    hessian = seen.T @ seen
    hessian[place] = hessian[place[::-1]] = bad
    with pytest.raises(ModelError, match=r"NaN or Inf.*--rounding rtn"):
        gptq(weight(), Hessian.of(hessian), integer(4, 32), torch.bfloat16)


@pytest.mark.skipif(native.library()[0] is None, reason=native.library()[1])
@pytest.mark.parametrize("rows", [1, 48, 64, 200])
@pytest.mark.parametrize("fmt", [integer(2, 32), integer(4, 32, False), integer(8, CHANNEL)], ids=str)
def test_columns_in_c_are_those_by_torch(fmt: Format, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sum in another order may move a weight that lies near the middle between two codes, no more."""
    order, original = Hessian.of(inputs().T @ inputs()), weight(rows)
    found = gptq(original, order, fmt, torch.bfloat16)
    calls: list[int] = []
    monkeypatch.setattr(native, "round_columns", lambda *args: calls.append(1))
    monkeypatch.setattr(native, "library", lambda: (None, "switched off"))
    expected = gptq(original, order, fmt, torch.bfloat16)
    assert not calls
    assert torch.equal(found.scale, expected.scale)
    assert float((found.codes != expected.codes).float().mean()) < 2e-3


def gradients(rows: int = 48, columns: int = 160) -> Tensor:
    """Of a few sequences, in the directions that inputs have."""
    outputs = torch.randn(5, rows, 600, generator=torch.Generator().manual_seed(2))
    return outputs @ inputs(columns)


def expected_share(error: Tensor, nearest: Tensor, gradient: Tensor) -> float:
    """Σ (G · D)² of each row and sequence, over Σ G² δ²."""
    left = sum(float((each * error).sum(1).square().sum()) for each in gradient)
    return left / sum(float((each * nearest).square().sum()) for each in gradient)


@pytest.mark.parametrize("symmetric", [True, False])
def test_shares_are_what_the_rounded_weights_show(symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the very weights that GPTQ returns; two weights, several formats at once."""
    formats = [integer(bits, group, symmetric) for bits in (2, 3, 4, 8) for group in (32, CHANNEL)]
    original, moments, gradient = weight(), inputs().T @ inputs(), gradients()
    fitted = Hessian.of(moments)
    monkeypatch.setattr("natprec.quantizers.gptq.WORK", 160 * (48 + 80) * 3)
    other = Judged(-weight(80), gradients(80))
    both = gptq_shares([other, Judged(original, gradient)], fitted, formats, torch.bfloat16)
    assert both.shape == (2, 1, len(formats))
    for fmt, share in zip(formats, both[1, 0], strict=True):
        error = gptq(original, fitted, fmt, torch.bfloat16).dequantize() - original
        nearest = quantize(original, fmt, torch.bfloat16).dequantize() - original
        assert share == pytest.approx(expected_share(error, nearest, gradient), rel=2e-3)


@pytest.mark.parametrize("symmetric", [True, False])
def test_shares_of_rescaled_columns_are_those_of_rescaled_weights(symmetric: bool) -> None:
    """Beside those of columns as they are; against GPTQ really run on weight times factor, inputs over factor."""
    formats = [integer(bits, 32, symmetric) for bits in (3, 4)]
    original, moments, gradient, factor = weight(), inputs().T @ inputs(), gradients(), torch.linspace(0.3, 4, 160)
    fitted, judged = Hessian.of(moments), Judged(original, gradient)
    shares = gptq_shares([judged], fitted, formats, torch.bfloat16, [None, factor])
    alone = gptq_shares([judged], fitted, formats, torch.bfloat16)
    torch.testing.assert_close(shares[:, :1], alone, rtol=1e-3, atol=0)
    for fmt, share in zip(formats, shares[0, 1], strict=True):
        error = gptq(original * factor, fitted.scaled(factor), fmt, torch.bfloat16).dequantize() / factor - original
        nearest = quantize(original, fmt, torch.bfloat16).dequantize() - original
        assert share == pytest.approx(expected_share(error, nearest, gradient), rel=2e-2)


def test_a_sample_of_rows_shows_the_share() -> None:
    original, moments, gradient, fmt = weight(640), inputs().T @ inputs(), gradients(640), [integer(4, 32)]
    rows = judged_rows(640)
    assert len(rows) == SHARE_ROWS < 640
    sampled, whole = (
        float(gptq_shares([judged], Hessian.of(moments), fmt, torch.bfloat16))
        for judged in (Judged(original[rows], gradient[:, rows]), Judged(original, gradient))
    )
    assert sampled == pytest.approx(whole, rel=0.15)


def test_few_rows_are_all_judged() -> None:
    assert judged_rows(5).tolist() == [0, 1, 2, 3, 4]


def test_no_gradients_leave_nothing_to_make_up_for() -> None:
    judged = Judged(weight(), torch.zeros(2, 48, 160))
    nothing = Hessian.of(torch.zeros(160, 160))
    assert gptq_shares([judged], nothing, FORMATS[:2], torch.bfloat16).tolist() == [[[1, 1]]]
