"""Distortions of the next token's prediction: zero for equal outputs, and of the curvature that is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from natprec.config import DISTORTIONS
from natprec.distortions import Distortion, LossIncrease, OutputKL, TopKKL, named
from natprec.distortions.divergence import forward_kl
from natprec.errors import InputError
from natprec.tasks.text import token_losses
from tests.arrange import subject, tokens

PREDICTING = [OutputKL(), TopKKL(3), LossIncrease()]


def logits(seed: int, vocabulary: int = 12) -> torch.Tensor:
    return torch.randn(2, 5, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("distortion", PREDICTING, ids=lambda each: each.name)
def test_equal_outputs_have_none(distortion: Distortion) -> None:
    text = tokens(2, 5, 12)
    found = distortion.between(logits(0), logits(0), text)
    assert found.shape == (2, distortion.terms(5))
    assert found.abs().max() < 1e-12
    assert distortion.between(logits(0), logits(1), text).abs().max() > 0.1


def test_merging_outcomes_never_raises_the_kl_and_all_of_them_is_the_kl() -> None:
    text, one, two = tokens(2, 5, 12), logits(0), logits(1)
    whole = forward_kl(one, two)
    last = torch.zeros_like(whole)
    for k in (1, 3, 6, 11):
        merged = TopKKL(k).between(one, two, text)
        assert (last - 1e-12 <= merged).all()
        assert (merged <= whole + 1e-12).all()
        last = merged
    torch.testing.assert_close(last, whole)


def test_loss_increase_is_that_of_the_text() -> None:
    text, one, two = tokens(2, 5, 12), logits(0), logits(1)
    torch.testing.assert_close(
        LossIncrease().between(one, two, text), (token_losses(two, text.ids) - token_losses(one, text.ids)).double()
    )


@pytest.mark.parametrize("distortion", [OutputKL(), TopKKL(3)], ids=lambda each: each.name)
def test_what_is_drawn_has_the_curvature_of_the_distortion(distortion: Distortion) -> None:
    """A small change of the logits: ½ E[(g · δ)²] over many draws is D summed over tokens."""
    one = logits(0)[:1].expand(2000, -1, -1).clone().requires_grad_()
    change = 1e-2 * logits(2)[:1]
    (gradient,) = torch.autograd.grad(distortion.draw(one, range(2000), seed=0), one)
    found = float((gradient * change).sum((1, 2)).square().mean()) / 2
    expected = float(distortion.between(one.detach()[:1], one.detach()[:1] + change, tokens(1, 5)).sum())
    assert found == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("distortion", PREDICTING, ids=lambda each: each.name)
def test_the_slope_has_the_gradient_of_the_mean(distortion: Distortion) -> None:
    text, found = tokens(2, 5, 12), []
    for scalar in (distortion.slope, lambda *given: distortion.between(*given).mean()):
        output = logits(1).float().requires_grad_()
        scalar(logits(0).float(), output, text).backward()
        found.append(output.grad)
    assert found[1] is not None
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def gradient(one: Tensor, sequences: range, seed: int = 3) -> Tensor:
    one = one.float().requires_grad_()
    return torch.autograd.grad(OutputKL().draw(one, sequences, seed), one)[0]


def test_what_is_drawn_depends_on_the_sequence_and_the_seed_alone() -> None:
    one, both = logits(1), gradient(logits(1), range(2))
    assert torch.equal(gradient(one, range(2)), both)
    assert torch.equal(gradient(one[1:], range(1, 2)), both[1:])
    assert not torch.equal(gradient(one[1:], range(1)), both[1:])
    assert not torch.equal(gradient(one, range(2), seed=4), both)


def test_logits_of_any_strides_give_the_same() -> None:
    one = logits(1).float()
    turned = one.transpose(0, 1).contiguous().transpose(0, 1)
    assert turned.stride() != one.stride()
    assert torch.equal(gradient(turned, range(2)), gradient(one, range(2)))


def test_loss_increase_draws_nothing_for_the_last_token() -> None:
    one = logits(0).requires_grad_()
    LossIncrease().draw(one, range(2), seed=0).backward()
    assert one.grad is not None
    assert one.grad[:, :-1].any()
    assert not one.grad[:, -1].any()


def test_a_plan_of_another_distortion_says_so() -> None:
    from natprec.measurement.measure import measure
    from natprec.measurement.subject import Subject

    made = subject()
    top = Subject.in_memory(made.model, None, "small", TopKKL())
    plain, merged = (measure(each, tokens(4, 16), group_size=32) for each in (made, top))
    assert (plain.solve(bits=4).distortion, merged.solve(bits=4).distortion) == ("kl", "kl-top10")
    total = [sum(curve.kl()[0] for curve in each.curves.values()) for each in (plain, merged)]
    assert 0 < total[1] < total[0]
    assert np.isfinite(total).all()


def test_unknown_name() -> None:
    with pytest.raises(InputError, match="did you mean 'embedding'"):
        named("embeding")
    assert all(named(name).name == name for name in DISTORTIONS)
