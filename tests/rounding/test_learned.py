"""Learned rounding: codes on their grid, a block nearer to the original's output, never farther, and repeatable."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.formats import GGUF_TYPES, integer
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import HiddenStates
from natprec.models.weight_sites import site_weight
from natprec.quantizers import QuantizedTensor, quantize
from natprec.rounding import learned
from natprec.rounding.learned import Learner
from natprec.rounding.moments import Gradients
from natprec.tasks import Samples
from natprec.utils.workers import Workers
from tests.arrange import apply_plan, encoder, restore, snapshot, subject, tokens

TEXT = tokens(16, 32)
THREE = integer(3, 32)


def improved(made: Subject, fmt: Any = THREE, **options: Any) -> tuple[dict[str, QuantizedTensor], ...]:
    """The first block's codes to nearest, and what is learned from them; the model holds those."""
    states = HiddenStates(made.segmented, TEXT)
    learner = Learner(made.segmented, states, Gradients(made.segmented, states), torch.float16, **options)
    for segment in (-1, 0):
        learner.watch(segment)
    states.through(-1)
    sites = [site for site in made.sites if site.segment == 0]
    unrounded = {site.name: site_weight(made.model, site).data for site in sites}
    codes = {name: quantize(weight, fmt, torch.float16) for name, weight in unrounded.items()}
    for site in sites:
        site_weight(made.model, site).data = codes[site.name].dequantize()
    return codes, learner.improve(0, codes, unrounded, dict.fromkeys(codes, 0))


def distance(made: Subject, codes: dict[str, QuantizedTensor], original: dict[str, Tensor], text: Samples) -> float:
    """Mean squared distance of the first block's output from the original's."""
    outputs = []
    for values in (None, codes):
        restore(made.model, original)
        for name, value in (values or {}).items():
            made.model.get_submodule(name).weight.data = value.dequantize()
        hidden, contexts = made.segmented.prefix(text)
        outputs.append(made.segmented.block(0, hidden, contexts[0]))
    return float((outputs[0] - outputs[1]).square().mean())


@pytest.mark.parametrize("make", [subject, encoder])
def test_a_block_comes_nearer_on_other_text(make: Any) -> None:
    made = make()
    original = snapshot(made.model)
    before, after = improved(made)
    for text in (TEXT, tokens(16, 32, seed=5)):
        assert distance(made, after, original, text) < 0.8 * distance(made, before, original, text)


@pytest.mark.parametrize(
    "fmt",
    [THREE, integer(2, 16, symmetric=False), integer(4, -1), GGUF_TYPES["Q4_0"], GGUF_TYPES["Q4_1"]],
    ids=lambda fmt: fmt.name,
)
def test_codes_and_scales_are_what_the_format_stores(fmt: Any) -> None:
    made = subject()
    before, after = improved(made, fmt)
    low, high = fmt.code_range
    assert after is not before
    for name, value in after.items():
        assert value.format == fmt
        assert value.codes.dtype == torch.int8
        assert int(value.codes.min()) >= low
        assert int(value.codes.max()) <= high
        assert not torch.equal(value.codes, before[name].codes)
        assert torch.equal(value.scale, value.scale.half().float())
        parameter = made.model.get_submodule(name).weight
        assert torch.equal(parameter, value.dequantize())
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_what_does_not_help_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned, "PATHS", (-1.0, -0.5))
    made = subject()
    before, after = improved(made)
    assert after is before
    for name, value in before.items():
        assert torch.equal(made.model.get_submodule(name).weight, value.dequantize())


def test_shorter_steps_help_where_long_ones_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = improved(subject())[1]
    monkeypatch.setattr(learned, "PATHS", (-1.0, learned.PATHS[0]))
    short = improved(subject())[1]
    assert all(torch.equal(short[name].codes, plain[name].codes) for name in plain)


def test_what_a_token_counts() -> None:
    """As the power of its gradient, but never less than half of the mean; together as much as they are."""
    gradient = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    gradient[1, 2] = 0
    found = learned.token_importance(gradient, Workers())
    assert found.shape == (3, 5, 1)
    assert float(found.mean()) == pytest.approx(1)
    assert float(found.min()) == float(found[1, 2]) == 0.5


def test_steps_uphill_are_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutation that the first test must catch: every step the other way."""
    gradients = Learner._descend
    monkeypatch.setattr(Learner, "_descend", lambda *args: {name: -g for name, g in gradients(*args).items()})
    before, after = improved(subject())
    assert after is before


def test_a_seed_repeats_it() -> None:
    found = [improved(subject(), seed=seed)[1] for seed in (1, 1)]
    assert all(torch.equal(found[0][name].codes, found[1][name].codes) for name in found[0])
    assert all(torch.equal(found[0][name].scale, found[1][name].scale) for name in found[0])


def test_what_no_text_reaches_stays() -> None:
    """A weight on which the block's output does not depend keeps its codes."""
    made = subject()
    with torch.no_grad():
        made.model.model.layers[0].mlp.down_proj.weight.zero_()
    before, after = improved(made)
    name = "model.layers.0.mlp.up_proj"
    assert torch.equal(before[name].codes, after[name].codes)


def test_it_costs_less_than_gptq() -> None:
    made = subject()
    plan = measure(made, tokens(4, 16, seed=9), engine="natprec", group_size=32).solve(bits=3.4)
    assert len(plan.histogram()) > 1
    original, others = snapshot(made.model), tokens(16, 32, seed=5)
    expected = made.segmented.output(others)
    cost = {}
    for rounding in ("gptq", "learned"):
        apply_plan(made.segmented, made.sites, plan, TEXT, rounding, made.storage_dtype, gauges=made.gauges)
        cost[rounding] = float(made.distortion.between(expected, made.segmented.output(others), others).mean())
        restore(made.model, original)
    assert cost["learned"] < 0.9 * cost["gptq"]
