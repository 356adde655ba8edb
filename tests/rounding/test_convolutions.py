"""Rounding a network of convolutions: its patches say how errors are made up for, and what that will leave."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn

import natprec
from natprec.measurement import Measurement
from natprec.measurement.module import subject_of_module
from natprec.measurement.subject import Subject
from natprec.tasks import Samples
from tests.arrange import apply_plan, restore, snapshot

BITS = 4.2


SIDE = 12


class Block(nn.Module):
    """Expand, filter each channel, project; in and out come places × channels, as blocks are found."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.depthwise = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1, groups=2 * channels)
        self.project = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        image = torch.relu(self.expand(x.mT.unflatten(2, (SIDE, SIDE))))
        return x + self.project(torch.relu(self.depthwise(image))).flatten(2).mT


class Net(nn.Module):
    """Plain, depthwise, grouped, strided and transposed convolutions."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        blocks = [Block(16) for _ in range(3)]
        self.blocks = nn.ModuleList(blocks) if chained else nn.Sequential(*blocks)
        self.down = nn.Conv2d(16, 32, 3, stride=2, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(32, 3, 4, stride=2, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        x = torch.relu(self.first(image)).flatten(2).mT
        for block in self.blocks:
            x = block(x)
        return self.up(torch.relu(self.down(x.mT.unflatten(2, (SIDE, SIDE)))))


def images(count: int, seed: int = 0) -> Samples:
    """Smooth ones."""
    found = torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    for dim in (2, 3, 2, 3):
        found = found + found.roll(1, dim)
    return Samples.of({"image": found})


@cache
def measured(chained: bool) -> tuple[Subject, Measurement]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(chained)
    return subject_of_module(net, images(1)), natprec.measure(net, samples=images(32), rounding="gptq")


def distortion(subject: Subject, measurement: Measurement, rounding: str, judged: Samples) -> tuple[float, float]:
    """Predicted, and measured on some images."""
    plan = measurement.solve(bits=BITS, rounding=rounding)
    original, before = snapshot(subject.model), subject.segmented.output(judged)
    try:
        apply_plan(subject.segmented, subject.sites, plan, images(32), rounding, subject.storage_dtype)
        after = subject.segmented.output(judged)
    finally:
        restore(subject.model, original)
    return plan.kl_predicted, float(subject.distortion.between(before, after, judged).mean())


@pytest.mark.parametrize("chained", [False, True])
def test_gptq_costs_less_than_nearest_and_what_was_predicted(chained: bool) -> None:
    subject, measurement = measured(chained)
    assert len(subject.segmented.blocks) == (3 if chained else 0)
    held_out = images(32, seed=1)
    _, nearest = distortion(subject, measurement, "rtn", held_out)
    predicted, gptq = distortion(subject, measurement, "gptq", held_out)
    assert gptq < 0.8 * nearest
    assert 0.5 < gptq / predicted < 2
    for name, curve in measurement.curves.items():
        known = (curve.shares < 1).any()
        assert known == (not chained or name != "first"), name  # what is before the blocks is rounded to nearest


@pytest.mark.parametrize("rounding", ["yaqa", "learned"])
def test_other_roundings_take_convolutions_of_blocks_too(rounding: str) -> None:
    subject, measurement = measured(True)
    _, nearest = distortion(subject, measurement, "rtn", images(32))
    _, found = distortion(subject, measurement, rounding, images(32))
    assert found < 0.8 * nearest
