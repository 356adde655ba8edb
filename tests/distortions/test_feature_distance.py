"""Embedding distance: its value, and that what the sweep draws has its curvature."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from natprec.distortions import EmbeddingDistance, FeatureDistance
from natprec.formats import integer
from natprec.measurement import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep
from natprec.models.weight_sites import site_weight
from natprec.tasks import Samples
from tests.arrange import encoder, tokens

LENGTH = 16
FORMATS = tuple(integer(bits, 32) for bits in (4, 6, 8))
NAME = "encoder.layer.0.attention.self.value"


def swept(made: Subject, text: Samples, seed: int = 5, **options: Any) -> dict[str, Curve]:
    formats = {site.name: FORMATS for site in made.sites}
    return sweep(made.segmented, made.sites, formats, text, scale_dtype=made.storage_dtype, seed=seed, **options)


def test_the_distance_is_two_minus_twice_the_cosine() -> None:
    distortion, made = EmbeddingDistance(), encoder()
    one, two = distortion.output(made.model, tokens(3, 9)), distortion.output(made.model, tokens(3, 9, seed=1))
    assert one.shape == (3, 1, 32)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(3, 1))
    found = distortion.between(one, two, tokens(3, 9))
    assert found.shape == (3, 1)
    cosine = functional.cosine_similarity(one.double(), two.double(), dim=-1)
    torch.testing.assert_close(found, 2 - 2 * cosine, rtol=1e-5, atol=1e-6)
    assert (found > 0.01).all()
    assert not distortion.between(one, one, tokens(3, 9)).any()
    hidden = made.model(input_ids=tokens(3, 9).ids).last_hidden_state
    torch.testing.assert_close(one[:, 0], functional.normalize(hidden.mean(1)))
    torch.testing.assert_close(
        EmbeddingDistance("cls").output(made.model, tokens(3, 9))[:, 0], functional.normalize(hidden[:, 0])
    )


def test_what_is_drawn_has_the_curvature_of_the_distance() -> None:
    """½ E[(g · δ)²] over many draws is ‖Jδ‖², computed from J itself: the factor is √2."""
    made, text = encoder(), tokens(1, LENGTH)
    weight = site_weight(made.model, next(site for site in made.sites if site.name == NAME))
    change = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    weight.requires_grad_()
    output = made.segmented.output(text)
    rows = [torch.autograd.grad(output[0, 0, i], weight, retain_graph=True)[0] for i in range(output.shape[-1])]
    expected = sum(float((row * change).sum()) ** 2 for row in rows)
    draws = [
        torch.autograd.grad(made.distortion.draw(output, range(1), seed), weight, retain_graph=True)[0]
        for seed in range(2000)
    ]
    weight.requires_grad_(False)
    found = np.mean([float((draw * change).sum()) ** 2 for draw in draws]) / 2
    assert found == pytest.approx(expected, rel=0.1), "standard error about 3 %"


def first_state(model: nn.Module, text: Samples) -> Tensor:
    """Features of a user's own: not normalised."""
    return model(input_ids=text.ids).last_hidden_state[:, 0]


@pytest.mark.parametrize(
    "distortion",
    [EmbeddingDistance(), EmbeddingDistance("cls"), FeatureDistance(first_state)],
    ids=lambda each: each.name,
)
def test_the_sweep_agrees_with_the_definition(distortion: FeatureDistance) -> None:
    """At 6 and 8 bits, for every Linear that the features depend on; a factor of 2 or √2 would show."""
    made, text = encoder(distortion), tokens(96, LENGTH)
    curves = swept(made, text)
    wanted = [(site, FORMATS) for site in made.sites if site.role == "linear" and "pooler" not in site.name]
    ratios = []
    for site, values in exact_curves(made.segmented, wanted, text[:48], made.storage_dtype):
        assert values.shape == (48, 3)
        ratios += list((curves[site.name].kl() / values.mean(0))[1:])
    assert len(ratios) == 12 * 2
    assert 0.8 < np.median(ratios) < 1.25, "half of it, or √2 of it, is far outside"


def test_embeddings_of_words_positions_and_types_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also positions, whose lookup a batch shares; the distance is per sequence, not per token."""
    made, text = encoder(), tokens(64, LENGTH)
    names = [f"embeddings.{kind}_embeddings" for kind in ("word", "token_type", "position")]
    curves = swept(made, text)
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", LENGTH)
    alone = swept(made, text)
    wanted = [(site, FORMATS) for site in made.sites if site.name in names]
    assert [site.name for site, _ in wanted] == names
    for site, values in exact_curves(made.segmented, wanted, text, made.storage_dtype):
        np.testing.assert_allclose(curves[site.name].forward, alone[site.name].forward, rtol=1e-3)
        assert 0.6 < curves[site.name].kl()[-1] / values.mean(0)[-1] < 1.6, site.name


def test_the_seed_and_not_the_batches_decide_the_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    made, text = encoder(), tokens(6, LENGTH)
    together, other = swept(made, text), swept(made, text, seed=6)
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 2 * LENGTH)
    apart = swept(made, text)
    np.testing.assert_allclose(together[NAME].forward, apart[NAME].forward, rtol=1e-4)
    assert not np.allclose(together[NAME].forward, other[NAME].forward, rtol=1e-2)
