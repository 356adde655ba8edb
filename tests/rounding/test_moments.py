"""Second moments of inputs and of gradients at outputs, as rounding gathers them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import HiddenStates
from natprec.models.weight_sites import Site
from natprec.rounding.moments import SEED, Gradients, Moments, segment_moments
from natprec.tasks import Samples
from tests.arrange import apply_plan, restore, snapshot, subject, tokens

TEXT = tokens(8, 32)


def gathered(made: Subject, until: int) -> dict[str, Tensor]:
    """Of the outputs of all layers of the blocks up to one, nothing rounded."""
    states = HiddenStates(made.segmented, TEXT)
    gradients = Gradients(made.segmented, states)
    found: dict[str, Tensor] = {}
    for segment in range(-1, until + 1):
        members = [site for site in made.sites if site.gptq and site.segment == segment]
        moments = segment_moments(made.segmented, members, states, segment, gradients)
        found |= moments.outputs
        states.through(segment)
    return found


def gradient_at(made: Subject, name: str, text: Samples = TEXT) -> Tensor:
    """At what a module puts out, by one backward through the whole model: (sequences, time, …)."""
    seen: list[Tensor] = []

    def watch(_: Any, args: Any, output: Tensor) -> Tensor:
        leaf = output.detach().requires_grad_()
        seen.append(leaf)
        return leaf

    handle = made.model.get_submodule(name).register_forward_hook(watch)
    try:
        made.distortion.draw(made.segmented.output(text), range(len(text)), SEED).backward()
    finally:
        handle.remove()
    (leaf,) = seen
    assert leaf.grad is not None
    return leaf.grad


def whole(made: Subject, site: Site) -> Tensor:
    """Σ g gᵀ."""
    rows = gradient_at(made, site.name).flatten(0, 1)
    return rows.T @ rows


def assert_left(gradients: Gradients, expected: list[Tensor | None]) -> None:
    """At the outputs of the blocks that are left: these, and no more."""
    for gradient in expected:
        own = gradients.pop()
        assert gradient is not None
        assert own is not None
        assert torch.equal(own, gradient)
    assert gradients.pop() is None


def test_gradients_are_those_of_the_whole_model() -> None:
    made = subject()
    found = gathered(made, until=1)
    linears = [site for site in made.sites if site.role == "linear"]
    assert found.keys() == {site.name for site in linears}
    for site in linears:
        expected = whole(made, site)
        torch.testing.assert_close(found[site.name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_a_rescaled_producer_has_rescaled_gradients() -> None:
    moments = Moments(outputs={"a": torch.ones(2, 2)})
    moments.rescale_outputs("a", torch.tensor([2.0, 3.0]))
    moments.rescale_outputs("a norm", torch.tensor([2.0, 3.0]))
    assert moments.outputs["a"].tolist() == [[4.0, 6.0], [6.0, 9.0]]


@pytest.mark.parametrize("passed", [0, 1])
def test_gradients_of_a_resumed_run_begin_where_it_does(passed: int) -> None:
    made = subject()
    states = HiddenStates(made.segmented, TEXT)
    gradients = Gradients(made.segmented, states)
    expected = [gradients.pop() for _ in range(2)]
    assert gradients.pop() is None
    states.reached = passed - 1 if passed else None
    assert_left(Gradients(made.segmented, states), expected[passed:])


def test_yaqa_costs_less_than_gptq() -> None:
    """Symmetric, at 3 to 5 bits, on the text that it was fitted to."""
    text = tokens(32, 48)
    made = subject()
    plan = measure(made, tokens(4, 16, seed=9), engine="vllm", group_size=32, rounding="yaqa").solve(bits=4.3)
    assert plan.rounding == "yaqa"
    original = snapshot(made.model)
    reference = made.segmented.output(text)
    distortion = {}
    for rounding in ("gptq", "yaqa"):
        apply_plan(made.segmented, made.sites, plan, text, rounding, made.storage_dtype, gauges=made.gauges)
        distortion[rounding] = float(made.distortion.between(reference, made.segmented.output(text), text).mean())
        restore(made.model, original)
    assert distortion["yaqa"] < distortion["gptq"]
