"""Networks of the shape that the claim is about, and the places in them that it names.

An `Autoencoder` goes from images through its latents to images; a `Generator` from noise through a transformer, once
for each step, to latents and an image. A place is a set of layers, by depth: their weights, and what flows into them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from natprec.inspection.landscape.claims import DECODER, ENCODER, LATENT, TRANSFORMER, Claim, along
from natprec.models.layers import layer_of
from natprec.tasks import Samples
from natprec.utils.hooks import attached

TENSOR, CHANNEL = "tensor", "channel"
"""What shares a grid of something that flows: all of an image's values there, or those of one channel."""


@dataclass(frozen=True)
class Place:
    """A part of a network.

    Attributes:
        name: in tables.
        claim: what T19 says of it.
        layers: names of modules; of a place that only something flows through (a latent), of an identity.
        weighs: whether the layers have weights.
        grid: `TENSOR` or `CHANNEL`.
    """

    name: str
    claim: Claim
    layers: tuple[str, ...]
    weighs: bool = True
    grid: str = TENSOR


@dataclass(frozen=True)
class Network:
    """What is measured.

    Attributes:
        name: in tables; `about`: where its weights come from, and how far it was trained.
        module: its first output is compared.
        samples: seed → inputs, by the names of the module's arguments.
        places: by depth.
        falls, rises: names of the places from and to which bits fall and rise by the claim; `lowest`: of the least.
        peak: largest minus smallest value of an output, to which dB refer; None: as its outputs have it.
    """

    name: str
    about: str
    module: nn.Module
    samples: Callable[[int], Samples]
    places: tuple[Place, ...]
    peak: float | None = 1.0
    falls: tuple[str, str] | None = None
    rises: tuple[str, str] | None = None
    lowest: str | None = None


class Autoencoder(nn.Module):
    """image → latents → image."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.latent, self.decoder = encoder, nn.Identity(), decoder

    def forward(self, image: Tensor) -> Tensor:
        """(batch, 3, H, W) in [0, 1], the same."""
        found: Tensor = self.decoder(self.latent(self.encoder(image)))
        return found


class Generator(nn.Module):
    """noise → image, in equal steps along the transformer's velocity, from time 1 to time 0.

    Args:
        transformer: called with states and times; it sees latents normalized by `mean` and `deviation`, (channels,).
        decoder: is run, and not measured here.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, transformer: nn.Module, decoder: nn.Module, mean: Tensor, deviation: Tensor, steps: int) -> None:
        super().__init__()
        self.transformer, self.state, self.latent = transformer, nn.Identity(), nn.Identity()
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("deviation", deviation.view(-1, 1, 1), persistent=False)
        self.steps, self._decode = steps, [decoder]  # in a list, so that its layers are none of this module

    def forward(self, noise: Tensor) -> Tensor:
        """(batch, channels, side, side) → images."""
        state = noise
        for step in range(self.steps):
            times = noise.new_full((len(noise),), 1 - step / self.steps)
            state = state - self.transformer(self.state(state), times) / self.steps
        found: Tensor = self._decode[0](self.latent(state * self.deviation + self.mean))
        return found


def autoencoder(
    name: str, about: str, encoder: nn.Module, decoder: nn.Module, images: Callable[[int], Tensor]
) -> Network:
    """Encoder and decoder by resolution, and the latent between, with one grid and with a grid for each channel.

    Args:
        images: seed → (batch, 3, H, W) in [0, 1].
    """
    module = Autoencoder(encoder, decoder).eval().requires_grad_(False)

    def samples(seed: int) -> Samples:
        return Samples.of({"image": images(seed)})

    found = order(module, samples(0)[:1].tensors)
    before = _by_size([each for each in found if each[0].startswith("encoder.")], "encoder")
    after = _by_size([each for each in found if each[0].startswith("decoder.")], "decoder")
    encoding = [
        Place(label, claim, names) for (label, names), claim in zip(before, along(ENCODER, len(before)), strict=True)
    ]
    decoding = [
        Place(label, claim, names) for (label, names), claim in zip(after, along(DECODER, len(after)), strict=True)
    ]
    latents = _latents("latent", "latent")
    return Network(
        name, about, module, samples, (*encoding, *latents, *decoding),
        falls=_ends(encoding), rises=_ends(decoding),
        lowest=latents[0].name,
    )  # fmt: skip


def generator(
    name: str, about: str, transformer: nn.Module, decoder: nn.Module, mean: Tensor, deviation: Tensor,
    shape: Sequence[int], *, steps: int, count: int,
) -> Network:  # fmt: skip
    """The transformer's layers in the order in which they run, in three thirds, its state and the last latent.

    Args:
        shape: of one latent: (channels, side, side); `count`: latents that are made for each seed.
    """
    module = Generator(transformer, decoder, mean, deviation, steps).eval().requires_grad_(False)

    def samples(seed: int) -> Samples:
        noise = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
        return Samples.of({"noise": noise})

    layers = [each for each, _ in order(module, samples(0)[:1].tensors)]
    blocks = [each for each in layers if ".blocks." in each]
    outside = [each for each in layers if ".blocks." not in each]
    thirds = [blocks[number * len(blocks) // 3 : (number + 1) * len(blocks) // 3] for number in range(3)]
    named = [
        (f"transformer, {which} third", tuple(names))
        for which, names in zip(("first", "middle", "last"), thirds, strict=True)
    ]
    inside = [Place(label, TRANSFORMER, names) for label, names in named if names]
    return Network(
        name, about, module, samples,
        (
            _latents("state", "latent before each step")[0],
            *inside, Place("transformer, outside its blocks", TRANSFORMER, tuple(outside)),
            *_latents("latent", "latent before the decoder"),
        ),
    )  # fmt: skip


def unet(name: str, about: str, module: nn.Module, samples: Callable[[int], Samples], peak: float | None) -> Network:
    """Convolutions by resolution, down to the smallest and up again, which stands for the transformer."""
    module = module.eval().requires_grad_(False)
    layers = [each for each in order(module, samples(0)[:1].tensors) if each[1]]
    least = min(size for _, size in layers)
    first, last = (edge([at for at, (_, size) in enumerate(layers) if size == least]) for edge in (min, max))
    down, up = _by_size(layers[:first], "down"), _by_size(layers[last + 1 :], "up")
    middle = Place(f"middle, {least} px", TRANSFORMER, tuple(each for each, _ in layers[first : last + 1]))
    claims = along(ENCODER, len(down)), along(DECODER, len(up))
    falling = [Place(label, claim, names) for (label, names), claim in zip(down, claims[0], strict=True)]
    rising = [Place(label, claim, names) for (label, names), claim in zip(up, claims[1], strict=True)]
    return Network(
        name, about, module, samples, (*falling, middle, *rising), peak,
        falls=_ends(falling), rises=_ends(rising), lowest=middle.name,
    )  # fmt: skip


@torch.no_grad()
def order(module: nn.Module, inputs: Mapping[str, Tensor]) -> list[tuple[str, int]]:
    """Layers with weights as they first run, each with the side of its input; 0 of what has no places."""
    found: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            found.setdefault(name, given[0].shape[-1] if given[0].dim() > 3 else 0)

        return hook

    layers = {name: each for name, each in module.named_modules() if layer_of(each, convolutions=True) is not None}
    with attached([each.register_forward_pre_hook(watch(name)) for name, each in layers.items()]):
        module(**inputs)
    return list(found.items())


def _latents(layer: str, name: str) -> tuple[Place, Place]:
    by_channel = Place(f"{name}, a grid per channel", LATENT, (layer,), weighs=False, grid=CHANNEL)
    return Place(name, LATENT, (layer,), weighs=False), by_channel


def _ends(places: Sequence[Place]) -> tuple[str, str]:
    """The first and the last stage; the layers that lead in and out are no stages where there are others."""
    inner = places[1:-1] if len(places) > 3 else places
    return inner[0].name, inner[-1].name


def _by_size(layers: Sequence[tuple[str, int]], label: str) -> list[tuple[str, tuple[str, ...]]]:
    """Consecutive layers of one size together, the first layer and the last apart."""
    stages = [
        (f"{label}, {size} px", tuple(name for name, _ in several))
        for size, several in groupby(layers[1:-1], key=lambda each: each[1])
    ]
    first, last = (f"{label}, first layer", (layers[0][0],)), (f"{label}, last layer", (layers[-1][0],))
    return [first, *stages, last] if len(layers) > 1 else [first]
