"""Experts that saw few tokens: counted, never cheaper than their like, and rounded to nearest where none came."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natprec.measurement import Measurement
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.routing import MIN_TOKENS
from natprec.models.weight_sites import site_weight
from natprec.quantizers import quantize, squared_errors
from tests.arrange import apply_plan, experts, tokens

LAYER = "model.layers.0.mlp.experts"


def steered(preferred: dict[int, float]) -> Subject:
    """A model whose first router leans to some experts by so much."""
    model = experts(num_local_experts=4, std=0.2)
    gate = model.model.layers[0].mlp.gate
    honest = gate.forward

    def forward(hidden: Tensor) -> Any:
        logits = torch.nn.functional.linear(hidden.reshape(-1, hidden.shape[-1]), gate.weight)
        for expert, much in preferred.items():
            logits[:, expert] += much
        weights, chosen = torch.topk(logits.softmax(-1), 2, -1)
        return logits, weights / weights.sum(-1, keepdim=True), chosen

    assert honest(torch.zeros(1, 1, 32))[2].shape == (1, 2)
    gate.forward = forward
    return Subject.in_memory(model, None, "steered")


@pytest.fixture(scope="module")
def rare() -> tuple[Subject, Measurement]:
    """Expert 3 is seldom chosen, expert 2 never."""
    subject = steered({2: -1e9, 3: -2.5})
    return subject, measure(subject, tokens(16, 24), group_size=32)


def test_every_token_is_counted_once_for_each_expert_that_it_goes_to(rare: tuple[Subject, Measurement]) -> None:
    curves = rare[1].curves
    for leaf in ("gate_proj", "up_proj", "down_proj"):
        seen = [curves[f"{LAYER}.{number}.{leaf}"].tokens for number in range(4)]
        assert sum(seen) == 2 * 16 * 24
        assert seen[2] == 0 < seen[3] < MIN_TOKENS <= min(seen[:2])
    assert curves["model.layers.0.self_attn.q_proj"].tokens is None


@pytest.mark.parametrize("leaf", ["gate_proj", "down_proj"])
def test_an_expert_that_saw_few_costs_what_the_others_do(rare: tuple[Subject, Measurement], leaf: str) -> None:
    subject, measurement = rare
    curves = [measurement.curves[f"{LAYER}.{number}.{leaf}"] for number in range(4)]
    typical = np.mean([curve.energy.mean() for curve in curves[:2]]) / curves[0].site.elements
    for curve in curves[2:]:
        assert curve.few
        weight = site_weight(subject.model, curve.site)
        errors = squared_errors(weight, curve.formats, subject.storage_dtype)[:-1].sum(1).double().numpy()
        expected = typical * errors / (2 * subject.distortion.terms(24))
        assert np.all(curve.forward.mean((0, 1)) >= expected * (1 - 1e-9))
        assert np.all(curve.shares == 1), "of GPTQ nothing is known"
    np.testing.assert_allclose(curves[2].forward.mean((0, 1)), expected_of(subject, curves[2], typical), rtol=1e-6)


def expected_of(subject: Subject, curve: Any, typical: float) -> np.ndarray:
    weight = site_weight(subject.model, curve.site)
    errors = squared_errors(weight, curve.formats, subject.storage_dtype)[:-1].sum(1).double().numpy()
    return np.asarray(typical * errors / (2 * subject.distortion.terms(24)))


def test_an_expert_never_reached_is_not_stored_narrower_than_the_others(rare: tuple[Subject, Measurement]) -> None:
    plan = rare[1].solve(eps=0.02, engine="natprec", rounding="rtn")
    bits = [plan.sites[f"{LAYER}.{number}.down_proj"].format.bits for number in range(4)]  # type: ignore[union-attr]
    assert abs(bits[2] - max(bits[:2])) <= 1
    assert min(bits) > 2
    assert plan.few_tokens.keys() == {f"{LAYER}.{n}.{p}_proj" for n in (2, 3) for p in ("gate", "up", "down")}
    assert plan.few_tokens[f"{LAYER}.2.up_proj"] == 0


def test_where_no_expert_saw_enough_the_one_that_saw_most_stands_for_all() -> None:
    measurement = measure(steered({2: -1e9, 3: -2.5}), tokens(4, 24), group_size=32)
    energies = [measurement.curves[f"{LAYER}.{number}.up_proj"].energy.mean() for number in range(4)]
    assert all(measurement.curves[f"{LAYER}.{number}.up_proj"].few for number in range(4))
    assert energies[2] == energies[3] == pytest.approx(max(energies))


def test_what_no_token_reached_is_rounded_to_nearest(rare: tuple[Subject, Measurement]) -> None:
    subject, measurement = rare
    plan = measurement.solve(eps=0.05, engine="natprec")
    original = {site.name: site_weight(subject.model, site).clone() for site in subject.sites}
    kept = {name: parameter.data for name, parameter in subject.model.named_parameters()}
    codes = apply_plan(
        subject.segmented, subject.sites, plan, tokens(16, 24), "gptq", subject.storage_dtype, gauges=subject.gauges
    )
    for name, parameter in subject.model.named_parameters():
        parameter.data = kept[name]
    nearest = {
        number: torch.equal(
            codes[f"{LAYER}.{number}.gate_proj"].codes,
            quantize(
                original[f"{LAYER}.{number}.gate_proj"],
                plan.sites[f"{LAYER}.{number}.gate_proj"].format,  # type: ignore[arg-type]
                subject.storage_dtype,
            ).codes,
        )
        for number in range(4)
    }
    assert nearest == {0: False, 1: False, 2: True, 3: False}


def test_the_estimate_of_an_expert_agrees_with_the_exact_one() -> None:
    subject, text = steered({}), tokens(16, 24)
    fisher = measure(subject, text, group_size=32, rounding="rtn").curves
    exact = measure(subject, text, group_size=32, rounding="rtn", estimator="exact").curves
    ratios = [
        fisher[name].kl()[place] / exact[name].kl()[place]
        for name in fisher
        if ".experts." in name and not fisher[name].few
        for place, fmt in enumerate(fisher[name].formats)
        if fmt.bits == 6
    ]
    assert len(ratios) > 8
    assert 0.5 < float(np.exp(np.median(np.log(ratios)))) < 2
