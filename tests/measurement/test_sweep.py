"""The sweep against plain autograd, against the whole model at once, and against the definition."""

from __future__ import annotations

import dataclasses
import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from natprec.distortions import OutputKL
from natprec.formats import Format, integer
from natprec.measurement import Curve
from natprec.measurement.exact import exact_curves
from natprec.measurement.resume import SweepState, load_state, save_state
from natprec.measurement.sharding import Sharding
from natprec.measurement.subject import Subject
from natprec.measurement.sweep import sweep, sweep_batches
from natprec.measurement.weight_observer import WeightObserver
from natprec.models.activation_sites import activation_formats
from natprec.models.weight_sites import find_sites, site_layer, site_weight
from natprec.quantizers import quantize
from natprec.tasks import Samples
from tests.arrange import subject, tokens

FORMATS = tuple(integer(bits, 32, symmetric) for bits in (2, 4, 8) for symmetric in (True, False))
WIDTHS = tuple(integer(bits, 32) for bits in range(2, 9))
LENGTH = 16
SEED = 5


def swept(made: Subject, text: Samples, formats: tuple[Format, ...] = FORMATS, **options: Any) -> dict[str, Curve]:
    options = {"scale_dtype": made.storage_dtype, "seed": SEED, **options}
    return sweep(made.segmented, made.sites, {site.name: formats for site in made.sites}, text, **options)


def gradients(made: Subject, text: Samples, name: str) -> Tensor:
    """∂ log p(y)/∂w of each sequence, by autograd through the whole model: (sequences, rows, columns)."""
    weight = made.model.get_submodule(name).weight
    weight.requires_grad_()
    try:
        losses = [
            made.distortion.draw(made.segmented.output(text[i : i + 1]), range(i, i + 1), SEED)
            for i in range(len(text))
        ]
        return torch.stack([torch.autograd.grad(loss, weight)[0] for loss in losses])
    finally:
        weight.requires_grad_(False)


def squared_error(made: Subject, weight: Tensor, fmt: Format) -> Tensor:
    return (quantize(weight, fmt, made.storage_dtype).dequantize() - weight).square()


def brute_force(made: Subject, text: Samples, name: str) -> np.ndarray:
    """1/2 Σ g² δ² per token: (sequences, formats)."""
    weight = made.model.get_submodule(name).weight
    squares = gradients(made, text, name).double().square()
    columns = [(squares * squared_error(made, weight, fmt)).sum((1, 2)) / (2 * text.length) for fmt in FORMATS]
    return torch.stack(columns, 1).numpy()


def twice_each() -> Samples:
    """Twelve sequences in which every token of the vocabulary occurs twice: no row is unseen."""
    half = torch.randperm(96, generator=torch.Generator().manual_seed(0)).view(12, LENGTH // 2)
    return Samples.text(torch.cat([half, half.flip(1)], 1))


LAYERS = ["model.layers.0.self_attn.k_proj", "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.o_proj"]


@pytest.mark.parametrize("name", LAYERS)
def test_linear_is_half_its_squared_gradient_times_its_squared_error(name: str) -> None:
    made, text = subject(), tokens(5, LENGTH)
    np.testing.assert_allclose(swept(made, text)[name].forward[0], brute_force(made, text, name), rtol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_without_singletons_sums_both_uses_before_squaring(tied: bool) -> None:
    made, text = subject(tie_word_embeddings=tied), twice_each()
    curve = swept(made, text)["model.embed_tokens"]
    np.testing.assert_allclose(curve.forward[0], brute_force(made, text, "model.embed_tokens"), rtol=1e-3)


def test_untied_head() -> None:
    made, text = subject(tie_word_embeddings=False), tokens(5, LENGTH)
    np.testing.assert_allclose(swept(made, text)["lm_head"].forward[0], brute_force(made, text, "lm_head"), rtol=1e-3)


def test_unseen_rows_cost_what_a_token_seen_once_costs() -> None:
    """The formula of `lookup_values`, written out for an embedding that is only looked up."""
    made, text = subject(tie_word_embeddings=False), tokens(4, LENGTH)
    name = "model.embed_tokens"
    squares = gradients(made, text, name).double().square()
    counts = torch.bincount(text.ids.flatten(), minlength=96)
    once, unseen = counts == 1, counts == 0
    assert once.any()
    assert unseen.any()
    mass = float(once.sum() / counts.sum())
    plain = brute_force(made, text, name)
    weight = site_weight(made.model, made.sites[0])
    single = squares.sum(0)[once].mean(0)
    pooled = [float(single @ squared_error(made, weight, fmt)[unseen].double().mean(0)) / 2 for fmt in FORMATS]
    expected = (1 - mass) * plain + mass * np.array(pooled)
    np.testing.assert_allclose(swept(made, text)[name].forward[0], expected, rtol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_unseen_rows_are_not_free(tied: bool) -> None:
    """The ten rows that the text uses are exact in every format, so that all cost is of the others."""
    made = subject(tie_word_embeddings=tied)
    with torch.no_grad():
        made.model.model.embed_tokens.weight[:10] = 2.0 ** -torch.arange(10.0)[:, None]
    ids = torch.cat([tokens(2, LENGTH, vocabulary=9).ids, torch.full((2, LENGTH), 3)])
    ids[3, 4] = 9  # seen once
    text = Samples.text(ids)
    symmetric = tuple(integer(bits, 32) for bits in (2, 4, 8))
    curve = swept(made, text, symmetric)["model.embed_tokens"]
    weight = site_weight(made.model, made.sites[0])
    own = gradients(made, text, "model.embed_tokens").double().square()
    unpooled = [float((own * squared_error(made, weight, fmt)).sum() / (2 * text.tokens)) for fmt in symmetric]
    if not tied:
        assert unpooled == [0, 0, 0]
    assert (curve.kl() > np.array(unpooled) * 1.0001).all()


@pytest.mark.parametrize("tied", [True, False])
def test_blocks_and_whole_model_agree(tied: bool) -> None:
    made, text = subject(tie_word_embeddings=tied), tokens(6, LENGTH)
    by_block = swept(made, text)
    made.segmented.blocks, made.segmented.block_names = [], []
    whole = dataclasses.replace(made, sites=find_sites(made.segmented))
    assert {site.segment for site in whole.sites} == {0}
    at_once = swept(whole, text)
    assert by_block.keys() == at_once.keys()
    for name, curve in by_block.items():
        for kind in ("forward", "backward", "energy", "shares", "unquantized"):
            expected, found = getattr(curve, kind), getattr(at_once[name], kind)
            np.testing.assert_allclose(found, expected, rtol=2e-3, err_msg=f"{name} {kind}")


def test_pools_are_means_of_their_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where memory is short, sequences share a pool; only the resolution is lost."""
    made, text = subject(), twice_each()
    single = swept(made, text)
    monkeypatch.setattr("natprec.measurement.pools.POOL_MEMORY", 1)
    pooled = swept(made, text)
    for name, curve in single.items():
        for kind in ("forward", "backward", "energy", "unquantized"):
            found, expected = getattr(pooled[name], kind), getattr(curve, kind)
            if kind in ("forward", "unquantized"):
                found, expected = found[0], expected[0]
            assert len(found) == 4
            expected = expected.reshape(4, 3, *found.shape[1:]).mean(1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=f"{name} {kind}")


def test_gptq_leaves_a_share_of_the_error() -> None:
    """Judged on other text than it is fitted to; what has no inputs of its own keeps the whole error."""
    made, text = subject(), tokens(64, 16)
    shares = []
    for curve in swept(made, text, rounding="gptq").values():
        if curve.site.role == "embedding":
            assert (curve.shares == 1).all()
        else:
            assert (curve.shares > 0).all()
            shares.append(curve.shares.mean())
        np.testing.assert_array_equal(curve.kl("gptq"), curve.forward[0].mean(0) * curve.shares)
    assert 0.3 < np.mean(shares) < 0.95
    assert all((curve.shares == 1).all() for curve in swept(made, text).values())


def test_kinds_of_text_are_kept_apart() -> None:
    """Linears: each part's curve is that of its own sequences; a site's KL is the larger one."""
    made = subject()
    text = tokens(4, LENGTH, vocabulary=6).followed_by(tokens(4, LENGTH, seed=1))
    one, two = swept(made, text), swept(made, text, parts=2)
    for name, curve in two.items():
        assert curve.forward.shape == (2, 4, len(FORMATS))
        assert curve.unquantized.shape == (2, 4)
        assert np.array_equal(curve.forward.reshape(1, 8, -1), one[name].forward)
        larger = np.maximum(curve.forward[0].mean(0), curve.forward[1].mean(0))
        assert np.array_equal(curve.kl(), larger * curve.alignment)
        assert (curve.kl() >= one[name].kl()).all()
        worse = curve.forward[:, :, 0].mean(1).argmax()
        assert np.array_equal(curve.samples(FORMATS[0]), curve.forward[worse, :, 0] * curve.alignment[0])


class Killed(Exception):
    pass


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("segments", [1, 2, 3, 4])
def test_killed_and_resumed_arrives_at_the_same_bits(
    segments: int, tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 4 * LENGTH)
    made, text = subject(tie_word_embeddings=tied), tokens(6, LENGTH)  # two batches
    expected = swept(made, text)
    file, fingerprint = tmp_path / "state.safetensors", {"seed": SEED}
    done = 0

    def save(state: SweepState) -> None:
        nonlocal done
        save_state(file, fingerprint, state)
        done += 1
        if done == segments:
            raise Killed

    with pytest.raises(Killed):
        swept(made, text, save=save)
    state = load_state(file, fingerprint)
    assert state is not None
    assert state.segment == 2 - segments
    found = swept(made, text, state=state)
    assert list(found) == list(expected)
    for name, curve in expected.items():
        for kind in ("forward", "backward", "energy", "shares", "unquantized", "alignment"):
            assert np.array_equal(getattr(curve, kind), getattr(found[name], kind)), (name, kind)


def test_state_of_another_measurement_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.safetensors"
    assert load_state(file, {"seed": 1}) is None
    save_state(file, {"seed": 1}, SweepState(2, None, {}, {}))
    with pytest.raises(ValueError, match=r"its seed is 1, now 2.*leave --resume out"):
        load_state(file, {"seed": 2})


def test_seed_decides_what_is_drawn() -> None:
    made, text = subject(), tokens(3, LENGTH)
    first, second = swept(made, text, seed=1), swept(made, text, seed=1)
    other = swept(made, text, seed=2)
    name = LAYERS[0]
    assert np.array_equal(first[name].forward, second[name].forward)
    assert not np.array_equal(first[name].forward, other[name].forward)


def test_what_is_drawn_at_a_token_has_the_covariance_of_the_prediction() -> None:
    """Over many positions with one prediction: diag(p) - p pᵀ, and nothing in common between positions."""
    chances = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    logits = chances.log().float().expand(40, 250, 4).clone().requires_grad_()
    OutputKL().draw(logits, range(40), seed=0).backward()
    drawn = logits.grad.double()  # type: ignore[union-attr]
    found = torch.einsum("sti,stj->ij", drawn, drawn) / (40 * 250)
    assert torch.allclose(found, chances.diag() - torch.outer(chances, chances), atol=0.01)
    assert drawn.sum(-1).abs().max() < 1e-6
    assert torch.einsum("sti,stj->ij", drawn[:, 1:], drawn[:, :-1]).abs().max() < 0.01 * 40 * 250


def test_relative_gradient_error_falls_with_width() -> None:
    for name, curve in swept(subject(), tokens(6, LENGTH), WIDTHS).items():
        relative = curve.backward.mean(0) / curve.energy.mean()
        assert (np.diff(relative) < 0).all(), name
        assert 0 < relative[-1] < 1e-3 < relative[0] < 1, name


def test_gradient_energy_is_the_squared_norm() -> None:
    made, text = subject(), tokens(4, LENGTH)
    energy = swept(made, text)[LAYERS[1]].energy
    expected = gradients(made, text, LAYERS[1]).square().sum((1, 2)).numpy()
    np.testing.assert_allclose(energy, expected, rtol=1e-3)


def test_fisher_agrees_with_the_definition() -> None:
    """From 6 bits, where errors are small, the median site is within a quarter of the exact KL."""
    made, text = subject(), tokens(96, 32)
    formats = WIDTHS[4:]
    curves = swept(made, text, formats)
    wanted = [(site, formats) for site in made.sites if site.role == "linear"]
    ratios = []
    for site, values in exact_curves(made.segmented, wanted, text[:24], made.storage_dtype):
        ratios += list(curves[site.name].kl() / values.mean(0))
    assert len(ratios) == 14 * 3
    assert 0.75 < np.median(ratios) < 1.25
    assert np.median(np.abs(np.array(ratios) - 1)) < 0.25


def test_exact_is_the_kl_of_the_replaced_model() -> None:
    from natprec.distortions.divergence import forward_kl

    made, text = subject(), tokens(5, LENGTH)
    formats = (integer(3, 32),)
    reference = made.segmented.output(text)
    for site, values in exact_curves(
        made.segmented, [(site, formats) for site in made.sites], text, made.storage_dtype
    ):
        weight = site_weight(made.model, site)
        original = weight.data
        weight.data = quantize(original, formats[0], made.storage_dtype).dequantize()
        expected = forward_kl(reference, made.segmented.output(text)).mean(1)
        weight.data = original
        np.testing.assert_allclose(values[:, 0], expected.numpy(), rtol=1e-3, atol=1e-9, err_msg=site.name)
    assert torch.equal(made.segmented.output(text), reference)


def test_advance_is_called_as_often_as_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.tasks.samples.BATCH_TOKENS", 4 * LENGTH)
    made, text = subject(), tokens(6, LENGTH)
    calls: list[str] = []
    swept(made, text, FORMATS[:1], advance=calls.append)
    assert len(calls) == sweep_batches(made.segmented, text)


@pytest.mark.parametrize("tied", [True, False])
def test_no_segment_s_graph_outlives_it(tied: bool) -> None:
    """What went forward is freed once it has gone back; a hook in a graph that holds a tensor of it keeps it all."""
    made, text = subject(tie_word_embeddings=tied), tokens(6, LENGTH)

    def graphs() -> int:
        return sum(type(each) is Tensor and each.grad_fn is not None for each in gc.get_objects())

    before, alive = graphs(), list[int]()
    flows = {site: activation_formats(site, 32) for site in made.activations}
    for options in ({}, {"activations": flows}):
        swept(made, text, FORMATS[:1], rounding="gptq", save=lambda _: alive.append(graphs()), **options)
    assert alive == [before] * 2 * len(made.segmented.segments)


@pytest.mark.parametrize(
    ("total", "parts", "memory", "pool_count"),
    [
        (12, 1, 1, 4),
        (12, 1, 1 << 30, 12),
        (7, 1, 1, 1),
        (3, 1, 1, 3),
        (12, 2, 1, 4),
        (18, 2, 1, 2),
        (18, 2, 1 << 30, 18),
    ],
)
def test_units_divide_each_kind_of_text(
    total: int, parts: int, memory: int, pool_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("natprec.measurement.pools.POOL_MEMORY", memory)
    made = subject()
    site = made.sites[1]
    shared = Sharding.alone(total)
    observer = WeightObserver(site, site_layer(made.model, site), FORMATS, shared, parts, torch.bfloat16, 0, {})
    assert observer.pool_count == pool_count
