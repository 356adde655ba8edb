"""An embedding is rounded by GPTQ with the gradients at what it puts out, and a plan supposes what that leaves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.distortions.divergence import forward_kl
from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.measurement.lookups import TYPICAL, add_gradients, own_lookups
from natprec.measurement.measure import measure
from natprec.measurement.subject import Subject
from natprec.models.hidden_states import HiddenStates
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gram import mirrored
from natprec.rounding.apply import rounded_segments
from natprec.rounding.moments import Gradients
from natprec.utils.workers import Workers
from tests.arrange import apply_plan, encoder, restore, snapshot, subject, tokens
from tests.measurement.test_sharding import built, shared, together
from tests.rounding.test_moments import assert_left, gradient_at

TEXT, OTHER = tokens(32, 32), tokens(32, 32, seed=1)
EMBEDDING = "model.embed_tokens"


def untied() -> Subject:
    return subject(tie_word_embeddings=False)


def looked_up(made: Subject) -> list[Site]:
    return [site for site in made.sites if site.looked_up]


def measured(made: Subject, **options: Any) -> Measurement:
    return measure(made, TEXT, engine="natprec", group_size=32, **options)


def only_embedding(measurement: Measurement, bits: int) -> Any:
    """A plan of the embedding alone, rounded to so many bits."""
    plan = measurement.solve(bits=4.5)
    sites = {
        name: replace(choice, format=integer(bits, 32) if name == EMBEDDING else None, scaled=False)
        for name, choice in plan.sites.items()
    }
    return replace(plan, sites=sites)


def test_which_sites_are_looked_up() -> None:
    assert [site.name for site in looked_up(untied())] == [EMBEDDING]
    assert looked_up(subject(tie_word_embeddings=True)) == []
    kinds = {site.name.rpartition(".")[2] for site in looked_up(encoder())}
    assert kinds == {"word_embeddings", "position_embeddings", "token_type_embeddings"}
    (site,) = looked_up(untied())
    assert site.compensates(integer(4, 32))
    assert not site.compensates(integer(8, 32))


def test_moments_are_those_of_the_gradients_of_the_whole_model() -> None:
    made = untied()
    gradients = Gradients(made.segmented, HiddenStates(made.segmented, TEXT), lookups=looked_up(made), blocks=False)
    assert gradients.pop() is None
    expected: dict[str, Tensor] = {}
    for own in gradient_at(made, EMBEDDING, TEXT):
        add_gradients(expected, EMBEDDING, own)
    found = mirrored(gradients.lookups[EMBEDDING])
    torch.testing.assert_close(found, mirrored(expected[EMBEDDING]), rtol=1e-4, atol=1e-6 * float(found.max()))


@pytest.mark.parametrize("reached", [None, 0, 1])
def test_a_resumed_run_gathers_the_same(reached: int | None) -> None:
    made = untied()
    states = HiddenStates(made.segmented, TEXT)
    whole = Gradients(made.segmented, states, lookups=looked_up(made))
    states.reached = reached
    again = Gradients(made.segmented, states, lookups=looked_up(made))
    assert torch.equal(again.lookups[EMBEDDING], whole.lookups[EMBEDDING])
    kept = [whole.pop() for _ in range(2)]
    assert_left(again, kept[0 if reached is None else reached + 1 :])


def test_no_position_outweighs_the_others() -> None:
    gradient = torch.ones(5, 2)
    gradient[0] *= 1e5
    sums: dict[str, Tensor] = {}
    add_gradients(sums, "a", gradient)
    add_gradients(sums, "a", torch.zeros(5, 2))
    add_gradients(sums, "b", torch.cat([torch.ones(2, 2), torch.zeros(5, 2)]))
    assert sums["b"].triu().tolist() == [[2, 2], [0, 2]], "padding is not typical"
    assert sums["a"].triu().tolist() == [[4 + TYPICAL, 4 + TYPICAL], [0, 4 + TYPICAL]]


def test_positions_of_all_sequences_are_looked_up_by_each() -> None:
    ids, output = own_lookups(torch.arange(3), torch.arange(6.0).view(3, 2), 2)
    assert ids.tolist() == [[0, 1, 2]] * 2
    assert output.shape == (2, 3, 2)
    assert output.requires_grad
    assert own_lookups(torch.arange(2), torch.zeros(2, 4), 2)[0].tolist() == [0, 1]


@pytest.mark.parametrize("rounding", ["gptq", "yaqa", "learned"])
def test_an_embedding_costs_less_on_other_text(rounding: str) -> None:
    made = untied()
    plan = only_embedding(measured(made), bits=3)
    original, reference = snapshot(made.model), made.segmented.output(OTHER)
    distortion, codes = {}, {}
    for way in ("rtn", rounding):
        codes[way] = apply_plan(made.segmented, made.sites, plan, TEXT, way, made.storage_dtype)[EMBEDDING]
        distortion[way] = float(forward_kl(reference, made.segmented.output(OTHER)).mean())
        restore(made.model, original)
    nearest = quantize(original[f"{EMBEDDING}.weight"], integer(3, 32), made.storage_dtype)
    assert torch.equal(codes["rtn"].codes, nearest.codes)
    assert distortion[rounding] < 0.9 * distortion["rtn"]


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_workers_chooses_the_same(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 3 * 32)
    plan = measured(built(tie_word_embeddings=False)).solve(bits=3.5)

    def rounded(workers: Workers) -> tuple[dict[str, QuantizedTensor], float]:
        made, found = shared(workers, tie_word_embeddings=False), dict[str, QuantizedTensor]()
        for _, codes in rounded_segments(made, plan, TEXT, "gptq"):
            found |= codes
        return found, workers.sent["round embedding"]

    alone, _ = rounded(Workers())
    (site,) = looked_up(built(tie_word_embeddings=False))
    assert site.compensates(alone[EMBEDDING].format)
    results = together(size, rounded)
    for found, _ in results:
        for name, codes in alone.items():
            assert torch.equal(found[name].codes, codes.codes), name
    expected = (size - 1) * (8 * site.shape[1] ** 2 + site.elements * (1 + 4 / 32))
    assert sum(sent for _, sent in results) == pytest.approx(expected, rel=0.02, abs=1024 * size * (size - 1))


def test_a_plan_supposes_what_it_leaves() -> None:
    made = untied()
    measurement = measured(made)
    curve = measurement.curves[EMBEDDING]
    wide = [fmt.bits >= 8 for fmt in curve.formats]
    assert (curve.shares[wide] == 1).all()
    assert (curve.shares[[not each for each in wide]] != 1).all()
    assert (measured(made, rounding="rtn").curves[EMBEDDING].shares == 1).all()
    plan = only_embedding(measurement, bits=3)
    original, reference = snapshot(made.model), made.segmented.output(OTHER)
    found = {}
    for way in ("rtn", "gptq"):
        apply_plan(made.segmented, made.sites, plan, TEXT, way, made.storage_dtype)
        found[way] = float(forward_kl(reference, made.segmented.output(OTHER)).mean())
        restore(made.model, original)
    share = curve.share(integer(3, 32), "gptq")
    assert 0.75 < share / (found["gptq"] / found["rtn"]) < 1.33
