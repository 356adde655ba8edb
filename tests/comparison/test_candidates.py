"""Rows of natprec that have no more candidates than the peers."""

from __future__ import annotations

import pytest

from natprec.comparison.candidates import linears_only, with_formats
from natprec.errors import InputError
from natprec.measurement import Measurement
from natprec.pipeline import api
from tests.arrange import subject, tokens


@pytest.fixture(scope="module")
def measured() -> Measurement:
    """A small tied llama, for any GPU."""
    own = subject(vocab_size=512)
    return api.measure(own.model, None, tokens(8, 16, 512), group_size=32, length=16, gpu="any", untested=True)


def test_embedding_and_head_stay_as_they_are(measured: Measurement) -> None:
    whole, kept = measured.solve(bits=5.0), linears_only(measured).solve(bits=5.0)
    assert whole.untied
    assert not kept.untied
    assert "lm_head" not in kept.sites
    assert kept.sites["model.embed_tokens"].format is None
    linears = {name for name, choice in kept.sites.items() if choice.format}
    assert linears == {curve.site.name for curve in measured.weights.values() if curve.site.role == "linear"}


def test_only_some_formats(measured: Measurement) -> None:
    few = with_formats(linears_only(measured), ("nvfp4", "fp8-channel"))
    plan = few.solve(bits=6.5)
    assert {choice.format.name for choice in plan.sites.values() if choice.format} == {"nvfp4", "fp8-channel"}
    name = next(name for name, choice in plan.sites.items() if choice.format)
    fmt = plan.sites[name].format
    assert fmt is not None
    places = [curves[name].formats.index(fmt) for curves in (measured.curves, few.curves)]
    for rounding in ("rtn", "gptq"):
        one, other = (m.curves[name].kl(rounding) for m in (measured, few))
        assert one[places[0]] == other[places[1]]


def test_formats_that_were_not_measured(measured: Measurement) -> None:
    with pytest.raises(InputError, match="measured in none of mxfp4"):
        with_formats(measured, ("mxfp4",))
