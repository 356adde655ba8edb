"""Three verdicts, and text in portions until the interval is narrow enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from natprec.errors import InputError
from natprec.evaluation.judging import FILES, GivenText, judge
from natprec.evaluation.verdict import FAIL, FIRST, MOST, NARROW, PASS, WITHIN_NOISE, Portions, verdict_of
from natprec.evaluation.verification import Comparison
from natprec.tasks import Samples

LENGTH = 256


def noisy(spread: float, mean: float = 1.0) -> tuple[GivenText, list[int], object]:
    """A text whose sequences have a KL of this mean and spread, and the portions that were compared."""
    draw, read = np.random.default_rng(0), list[int]()

    def compare(samples: Samples, number: int) -> Comparison:
        read.append(number)
        return Comparison(np.repeat(draw.normal(mean, spread, (len(samples), 1)), 2, 1), samples.tokens)

    return GivenText("text", Samples.text(torch.arange(400 * LENGTH).view(-1, LENGTH))), read, compare


def test_the_upper_end_decides_between_pass_and_noise() -> None:
    assert verdict_of(0.9, 1.0, 1.0) == verdict_of(1.0, 1.0, 1.0) == PASS
    assert verdict_of(0.9, 1.0 + 1e-9, 1.0) == WITHIN_NOISE
    assert verdict_of(1.0 + 1e-9, 2.0, 1.0) == FAIL
    assert verdict_of(float("nan"), 0.0, 1.0) == FAIL


def test_how_much_text_judges() -> None:
    assert Portions.of(1, None, 3) == Portions(1, 3), "each text judges"
    assert Portions.of(7, 1.0, 2) == Portions(3, 6)
    assert Portions.of(None, 2.0, 2) == Portions(FIRST, MOST, 2 * NARROW)
    assert Portions.of(None, None, 2) == Portions(FIRST, 2 * FIRST)


def test_how_much_more_text_is_needed() -> None:
    """The interval narrows with the root of the tokens; a tenth more is read than that asks for."""
    rule = Portions(4096, 32768, 0.5)
    assert rule.more(4096, 0, 1.0) == 13927
    assert rule.more(4096, 0, 0.5) == 0, "as narrow as is wanted"
    assert rule.more(4096, 20000, 9.0) == 32768 - 20000 - 4096
    assert rule.more(32768, 0, 9.0) == 0
    assert Portions(4096, 32768, 1.0).more(4096, 0, 1.5) == 6042
    assert Portions(4096, 32768, 0.0).more(4096, 0, 0.1) == 32768 - 4096


@pytest.mark.parametrize(("spread", "tokens"), [(0.001, FIRST), (0.2, None), (5.0, MOST)])
def test_text_judges_until_the_interval_is_narrow_or_there_is_the_most(spread: float, tokens: int | None) -> None:
    text, read, compare = noisy(spread)
    (found,) = judge([text], Portions.of(None, 1.0), compare, 0, 0.95)
    low, high = found.text.kl_ci95
    assert read == list(range(len(read)))
    if tokens is None:
        assert FIRST < found.text.tokens < MOST
    else:
        assert found.text.tokens == tokens
    assert ((high - low) / 2 <= NARROW) is (spread < 1)
    assert torch.equal(found.samples.ids, text.windows.ids[: len(found.samples)]), "in the text's own order, none twice"
    assert found.text.tokens == found.samples.tokens


def test_a_number_of_tokens_is_kept_to_and_without_a_tolerance_the_first_portion_does() -> None:
    for tokens, promise, expected in ((1024, 1.0, 1024), (1024, None, 1024), (None, None, FIRST)):
        text, _, compare = noisy(5.0)
        assert judge([text], Portions.of(tokens, promise), compare, 0, 0.95)[0].text.tokens == expected


def test_of_two_texts_the_one_that_decides_is_read_on() -> None:
    calm, _, _ = noisy(1.0)
    wild, read, compare = noisy(5.0)
    calm_mean = {"value": 0.5}

    def both(samples: Samples, number: int) -> Comparison:
        if number >= FILES:
            return compare(samples, number)
        return Comparison(np.full((len(samples), 2), calm_mean["value"]), samples.tokens)

    found = judge([calm, wild], Portions.of(None, 1.0, 2), both, 0, 0.95)
    assert [each.text.tokens for each in found] == [FIRST, MOST - FIRST]
    assert read == list(range(FILES, FILES + len(read)))
    calm_mean["value"] = 50.0
    found = judge([noisy(1.0)[0], noisy(5.0)[0]], Portions.of(None, 1.0, 2), both, 0, 0.95)
    assert [each.text.tokens for each in found] == [FIRST, FIRST], "what decides has no spread"


def test_a_number_of_tokens_is_shared_by_the_texts() -> None:
    texts = [noisy(5.0)[0], noisy(5.0)[0]]
    found = judge(texts, Portions.of(2048, 1.0, 2), noisy(5.0)[2], 0, 0.95)
    assert [each.text.tokens for each in found] == [1024, 1024]


def test_a_short_text_judges_as_far_as_it_goes_and_an_empty_one_is_refused() -> None:
    _, _, compare = noisy(5.0)
    short = GivenText("short", Samples.text(torch.zeros(20, LENGTH, dtype=torch.int64)))
    assert judge([short], Portions.of(None, 1.0), compare, 0, 0.95)[0].text.tokens == 20 * LENGTH
    with pytest.raises(InputError, match=r"no held-out tokens .* 'short'"):
        judge([short], Portions.of(None, 1.0), compare, 0, 0.95)


def test_numbers_that_are_none_end_the_judging() -> None:
    text, read, _ = noisy(1.0)
    (nan,) = judge([text], Portions.of(None, 1.0), lambda samples, _: Comparison(np.full((len(samples), 2), np.nan),
                   samples.tokens), 0, 0.95)  # fmt: skip
    assert np.isnan(nan.text.kl_mean)
    assert not read
