"""What is predicted before a picture has been read does not count, and the rest counts as much as other text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from natprec.distortions import named
from natprec.distortions.pictures import AfterPictures
from natprec.tasks import VISION_LANGUAGE, Samples
from natprec.tasks.samples import COUNTED, TOKENS
from natprec.tasks.vision_language import not_text, with_pictures

ROWS, TIME, WORDS = 2, 12, 9
NAMES = ("kl", "kl-top10", "loss")


class Shown(torch.nn.Module):
    """A model whose logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)
        self.given: dict[str, torch.Tensor] = {}

    def forward(self, **inputs: torch.Tensor) -> Shown:
        self.given = inputs
        return self


def samples(first: int = 7) -> Samples:
    counted = torch.ones(ROWS, TIME, dtype=torch.bool)
    counted[:, :first] = False
    draw = torch.Generator().manual_seed(1)
    return Samples({TOKENS: torch.randint(WORDS, (ROWS, TIME), generator=draw), COUNTED: counted}, TIME)


def pair(words: int = WORDS) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    one = torch.randn(ROWS, TIME, words, generator=draw)
    return one, one + 0.1 * torch.randn(ROWS, TIME, words, generator=draw)


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_that_of_the_positions_that_count(name: str) -> None:
    inner, text = named(name), samples()
    distortion = AfterPictures(inner)
    one, two = pair(40)
    outputs = [distortion.output(Shown(logits), text) for logits in (one, two)]
    found = distortion.between(outputs[0], outputs[1], text)
    expected = inner.between(one, two, text)[:, 7:]
    assert torch.allclose(found.mean(1), expected.mean(1), rtol=1e-6, atol=1e-9)
    assert found.shape == (ROWS, inner.terms(TIME))


def test_the_curvature_is_that_of_the_mean() -> None:
    """½ E[(∇s · δ)²] is the sum over terms, as if all counted; it would be 5/12 of that were gradients not longer."""
    distortion, text = AfterPictures(named("kl")), samples()
    one, _ = pair()
    change = 0.01 * torch.randn(one.shape, generator=torch.Generator().manual_seed(5))
    model = Shown(one)
    squares = []
    for seed in range(400):
        model.logits.grad = None
        distortion.draw(distortion.output(model, text), range(ROWS), seed).backward()
        assert (model.logits.grad[:, :7] == 0).all()
        squares.append(((model.logits.grad * change).sum((1, 2)) ** 2) / 2)
    with torch.no_grad():
        outputs = [distortion.output(Shown(logits), text) for logits in (one, one + change)]
        expected = distortion.between(*outputs, text).sum(1)
    ratio = torch.stack(squares).mean(0) / expected.float()
    assert (ratio - 1).abs().max() < 4 * math.sqrt(2 / 400)


def test_text_without_pictures_is_as_ever() -> None:
    one, two = pair()
    text = Samples({TOKENS: samples().ids}, TIME)
    inner = named("kl")
    distortion = AfterPictures(inner)
    outputs = [distortion.output(Shown(logits), text) for logits in (one, two)]
    assert torch.equal(distortion.between(outputs[0], outputs[1], text), inner.between(one, two, text))
    assert distortion.name == inner.name


def test_figures_leave_out_what_does_not_count() -> None:
    one, _ = pair()
    for metric, plain in zip(VISION_LANGUAGE.metrics, named("kl").task.metrics, strict=True):  # type: ignore[union-attr]
        values = metric.values(one, one, samples()).numpy()
        assert np.isnan(values[:, :7]).all()
        assert metric.total(values) == pytest.approx(plain.total(values[:, 7:]))
        whole = plain.values(one, one, samples()).numpy()
        assert metric.total(whole) == plain.total(whole)


def test_pictures_of_a_batch_follow_each_other_and_do_not_run_with_text() -> None:
    shown = samples()
    shown = Samples({**shown.tensors, "pixels": torch.randn(ROWS, 4, 3), "kinds": torch.ones(ROWS, TIME).long()}, TIME)
    text = Samples.text(torch.zeros(3, TIME, dtype=torch.long))
    both = with_pictures(text, shown)
    assert [len(part) for part in both.split(8)] == [3, ROWS]
    assert both.batches(2) == [slice(0, 2), slice(2, 3), slice(3, 5)]
    assert set(VISION_LANGUAGE.inputs(both[:3])) == {TOKENS, "use_cache"}
    inputs = VISION_LANGUAGE.inputs(both[3:])
    assert torch.equal(inputs["pixels"], shown.tensors["pixels"].flatten(0, 1))
    assert inputs["kinds"].shape == (ROWS, TIME)
    assert COUNTED not in inputs
    assert Samples.unpacked(both.packed()).digest == both.digest


def test_tokens_that_stand_for_pictures_are_known_by_the_configuration() -> None:
    from transformers import Gemma3Config, LlamaConfig, LlavaConfig, Qwen2VLConfig

    assert not_text(LlamaConfig()) == []
    assert not_text(LlavaConfig()) == [32000]
    assert {255_999, 256_000} <= set(not_text(Gemma3Config()))
    qwen = Qwen2VLConfig(image_token_id=5, video_token_id=6, vision_start_token_id=7, vision_end_token_id=8)
    assert not_text(qwen) == [5, 6, 7, 8]
