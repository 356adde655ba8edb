"""A tiny VAE, transformer and decoder with random weights, in seconds what the real ones take minutes for."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from natprec.inspection.landscape.networks import Network, autoencoder, generator, unet
from natprec.inspection.landscape.transformer import Shape, Transformer
from natprec.tasks import Samples

SHAPE = Shape(channels=4, side=4, width=16, blocks=3, heads=2)


def coders() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1),
    )  # fmt: skip
    decoder = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1),
    )  # fmt: skip
    return encoder, decoder


def transformer() -> Transformer:
    """Its gates begin at zero, which would leave its blocks without effect."""
    torch.manual_seed(1)
    made = Transformer(SHAPE)
    for each in made.parameters():
        if not each.any():
            nn.init.normal_(each, std=0.2)
    return made


def images(seed: int) -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def vae() -> Network:
    return autoencoder("tiny VAE", "random", *coders(), images)


def dit() -> Network:
    shape = (SHAPE.channels, SHAPE.side, SHAPE.side)
    return generator(
        "tiny DiT", "random", transformer(), coders()[1], torch.zeros(4), torch.ones(4), shape, steps=2, count=4
    )


class TinyUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, padding=1)
        self.middle, self.up = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.last, self.sigma = nn.Conv2d(4, 1, 3, padding=1), nn.Linear(1, 4)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        first = self.first(noisy).relu()
        middle = self.middle(self.down(first).relu() + self.sigma(sigma.unsqueeze(1))[..., None, None]).relu()
        raised = nn.functional.interpolate(middle, scale_factor=2.0)
        return self.last(self.up(torch.cat([first, raised], 1)).relu())


def tiny_unet() -> Network:
    def samples(seed: int) -> Samples:
        noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
        return Samples.of({"noisy": noise, "sigma": torch.ones(4)})

    return unet("tiny UNet", "random", TinyUNet(), samples, None)
