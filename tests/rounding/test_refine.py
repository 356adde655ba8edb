"""Refinement: lower distortion of the whole model, nothing but scales changed, never worse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.formats import Format, integer
from natprec.measurement.subject import Subject
from natprec.models.weight_sites import site_weight
from natprec.quantizers import QuantizedTensor, quantize
from natprec.rounding import refine as module
from natprec.rounding.refine import Refined, refine
from natprec.tasks import Samples
from tests.arrange import encoder, restore, snapshot, subject, tokens

TEXT = tokens(16, 24)
THREE = integer(3, 32)


def rounded(made: Subject, fmt: Format = THREE) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
    """All sites to nearest at one width, and the original weights."""
    original = snapshot(made.model)
    codes = {site.name: quantize(site_weight(made.model, site), fmt, torch.float16) for site in made.sites}
    for site in made.sites:
        site_weight(made.model, site).data = codes[site.name].dequantize()
    return codes, original


def refined(made: Subject, codes: dict[str, QuantizedTensor], original: dict[str, Tensor], **options: Any) -> Refined:
    return refine(made.segmented, made.sites, codes, original, TEXT, 20, dtype=torch.float16, **options)


def distortion(made: Subject, original: dict[str, Tensor], text: Samples) -> float:
    present = snapshot(made.model)
    found = made.segmented.output(text)
    restore(made.model, original)
    value = made.distortion.between(made.segmented.output(text), found, text).mean()
    restore(made.model, present)
    return float(value)


@pytest.mark.parametrize("make", [subject, encoder])
def test_the_distortion_falls_on_other_text(make: Any) -> None:
    made = make()
    codes, original = rounded(made)
    others = tokens(16, 24, seed=5)
    before = distortion(made, original, others)
    result = refined(made, codes, original)
    assert result.after < result.before
    assert distortion(made, original, others) < before


def test_only_scales_move_and_the_model_holds_them() -> None:
    made = subject()
    codes, original = rounded(made, integer(3, 32, symmetric=False))
    steps: list[str] = []
    result = refined(made, codes, original, advance=steps.append)
    assert len(steps) == 20
    assert result.codes.keys() == codes.keys()
    for site in made.sites:
        new, old = result.codes[site.name], codes[site.name]
        assert torch.equal(new.codes, old.codes)
        assert torch.equal(new.zero_point, old.zero_point)  # type: ignore[arg-type]
        assert torch.equal(new.scale, new.scale.half().float())
        assert not torch.equal(new.scale, old.scale)
        weight = site_weight(made.model, site)
        assert torch.equal(weight, new.dequantize())
        assert not weight.requires_grad
        assert weight.grad is None


def test_what_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RATE", 1.0)
    made = subject()
    codes, original = rounded(made)
    weights = snapshot(made.model)
    result = refined(made, codes, original)
    assert result.after > result.before
    assert result.codes is codes
    assert all(torch.equal(weights[name], value) for name, value in snapshot(made.model).items())


def test_a_seed_repeats_it() -> None:
    found = []
    for seed in (1, 1, 2):
        made = subject()
        codes, original = rounded(made)
        found.append(refined(made, codes, original, seed=seed).after)
    assert found[0] == found[1] != found[2]
