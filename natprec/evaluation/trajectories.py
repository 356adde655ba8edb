"""What quantizing one part does to a whole pipeline: each step by itself, and images made from equal seeds.

A step by itself: both networks are given what the original pipeline gives that step. Along the trajectory: each
pipeline goes its own way from the same noise, and errors of early steps change what later ones are given. Images are
in [0, 1], and PSNR = -10 log10 of the mean squared difference of their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.data.pipeline_calls import Call, default_steps, noted, run_pipeline
from natprec.distortions import Distortion
from natprec.tasks import Samples
from natprec.tasks.diffusion import TIMESTEP, PipelinePart
from natprec.utils.atomic_files import write_bytes, write_json
from natprec.utils.seeds import derived

FILE, STRIP = "trajectory.json", "trajectory.png"

IMAGES = 4
"""That are made; each by both pipelines, in all steps."""

BINS = 10
"""Of timesteps, in which steps are put together where there are more."""


@dataclass(frozen=True)
class Bin:
    """Steps of neighbouring timesteps, each by itself.

    Attributes:
        first, last: their timesteps, in the order of denoising.
        mean, largest: of the distortion of their calls.
        drift: relative squared distance of what both pipelines give the part there.
    """

    first: float
    last: float
    steps: int
    mean: float
    largest: float
    drift: float


@dataclass(frozen=True)
class Trajectory:
    """The figures of trajectory.json.

    Attributes:
        component: that is quantized; `steps`: of denoising; `images`: that were made; `seed`: of their noise.
        timesteps: bins in the order of denoising; empty of a part that is not told the timestep.
        worst: timesteps of the bin with the largest mean.
        psnr_db: of each image; empty where the pipeline makes none; None: both images are the same.
    """

    component: str
    steps: int
    images: int
    seed: int
    timesteps: list[Bin] = field(default_factory=list)
    worst: tuple[float, float] | None = None
    psnr_db: list[float | None] = field(default_factory=list)

    @property
    def line(self) -> str:
        """What a person wants to know first."""
        said = []
        if self.worst is not None:
            at = f"{self.worst[0]:g}" if self.worst[0] == self.worst[1] else f"{self.worst[0]:g} to {self.worst[1]:g}"
            said.append(f"worst timestep {at}: {max(each.mean for each in self.timesteps):.3g}")
        known = [each for each in self.psnr_db if each is not None]
        if known:
            said.append(f"{len(self.psnr_db)} images from equal seeds: PSNR {min(known):.1f} to {max(known):.1f} dB")
        return "; ".join(said)


@torch.no_grad()
def compare_trajectories(
    part: PipelinePart, network: nn.Module, distortion: Distortion, seed: int, count: int = IMAGES
) -> tuple[Trajectory, Tensor | None]:
    """Run the pipeline with its own part and with the quantized one.

    Args:
        network: the quantized part, on the pipeline's device.
        count: of images.
    Returns:
        The figures, and the images, (2, images, channels, height, width): the original's, then the quantized ones; None
        where the pipeline makes none.
    """
    assert part.calls is not None
    own = getattr(part.pipeline, part.component)
    steps = part.steps or default_steps(part.pipeline)
    items = part.asked.chosen(count, "held-out", True)
    seeds = [derived(2 * seed + 1, number) for number in range(count)]
    with noted(part, part.calls.entry) as calls:
        original = _images(run_pipeline(part, items, seeds, steps))
    setattr(part.pipeline, part.component, network)
    try:
        with noted(part, part.calls.entry) as others:
            quantized = _images(run_pipeline(part, items, seeds, steps))
    finally:
        setattr(part.pipeline, part.component, own)
    bins: list[Bin] = []
    if TIMESTEP in calls[0].rows:
        values = [_distances(part, own, network, distortion, call) for call in calls]
        bins = _binned(calls, values, [_drift(*pair) for pair in zip(calls, others, strict=True)])
    worst = max(bins, key=lambda each: each.mean, default=None)
    both = None if original is None or quantized is None else torch.stack([original, quantized])
    return Trajectory(
        part.component,
        steps,
        count,
        seed,
        bins,
        None if worst is None else (worst.first, worst.last),
        [] if both is None else [_psnr(one, two) for one, two in zip(*both, strict=True)],
    ), both


def save_trajectory(folder: Path, found: Trajectory, images: Tensor | None) -> None:
    """Write trajectory.json, and trajectory.png with the original images above the quantized ones."""
    write_json(folder / FILE, asdict(found))
    if images is not None:
        write_bytes(folder / STRIP, strip(images))


def strip(images: Tensor) -> bytes:
    """A PNG of (rows, images, channels, height, width) in [0, 1]."""
    import io

    from PIL import Image

    rows = [torch.cat(list(row), dim=-1) for row in images]
    whole = torch.cat(rows, dim=-2).clamp(0, 1)
    whole = whole.expand(3, -1, -1) if len(whole) == 1 else whole[:3]
    pixels = (whole.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()
    made = io.BytesIO()
    Image.fromarray(pixels).save(made, "PNG")
    return made.getvalue()


def _images(output: Any) -> Tensor | None:
    """(images, channels, height, width), or None where the pipeline makes something else."""
    found = getattr(output, "images", None)
    return found.float().cpu() if isinstance(found, Tensor) and found.dim() == 4 else None


def _psnr(one: Tensor, two: Tensor) -> float | None:
    error = float((one.double() - two.double()).square().mean())
    return None if error == 0 else -10 * math.log10(error)


def _distances(part: PipelinePart, own: nn.Module, network: nn.Module, distortion: Distortion, call: Call) -> Tensor:
    """D of each row of a call of the original pipeline."""
    samples = Samples(call.rows, 1)
    return distortion.between(distortion.output(own, samples), distortion.output(network, samples), samples).mean(1)


def _drift(one: Call, two: Call) -> float:
    """How far what both pipelines give the part at a step has come apart: of its first argument, the latents."""
    name = next(iter(one.rows))
    first, second = one.rows[name].double(), two.rows[name].double()
    return float((first - second).square().sum() / first.square().sum().clamp_min(1e-12))


def _binned(calls: Sequence[Call], values: Sequence[Tensor], drifts: Sequence[float]) -> list[Bin]:
    """Calls that follow on one another, in at most `BINS` bins."""
    count = min(BINS, len(calls))
    found = []
    for number in range(count):
        own = range(number * len(calls) // count, (number + 1) * len(calls) // count)
        together = torch.cat([values[place] for place in own])
        times = [float(calls[place].rows[TIMESTEP].flatten()[0]) for place in own]
        drift = sum(drifts[place] for place in own) / len(own)
        found.append(Bin(times[0], times[-1], len(own), float(together.mean()), float(together.max()), drift))
    return found
