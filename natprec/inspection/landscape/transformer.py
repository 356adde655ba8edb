"""A small diffusion transformer over latents (Peebles and Xie 2022, arXiv:2212.09748), trained by flow matching.

It predicts the velocity ε - x₀ of xₜ = (1 - t) x₀ + t ε (Lipman et al. 2022, arXiv:2210.02747) from patches of 2 x 2
latents; time enters each block through scales, shifts and gates that begin at zero. `scripts/landscape_dit.py` trains
one on latents of TAEF2; its file says with what.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import InputError, first_line
from natprec.inspection.landscape.taef2 import with_weights
from natprec.utils.atomic_files import write_bytes

PATCH = 2
KEY = "landscape"
"""Of the file's metadata: the shape, and how it was trained."""


@dataclass(frozen=True)
class Shape:
    """Of a transformer: channels and side of its latents, its width, blocks and heads."""

    channels: int = 32
    side: int = 8
    width: int = 128
    blocks: int = 6
    heads: int = 4


class _Block(nn.Module):
    """Attention and an MLP, each scaled, shifted and gated by time."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        size = x.shape[-1:]
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(time).unsqueeze(1).chunk(6, -1)
        normed = functional.layer_norm(x, size) * (1 + scale) + shift
        heads = self.qkv(normed).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        x = x + gate * self.out(mixed)
        normed = functional.layer_norm(x, size) * (1 + scale2) + shift2
        return x + gate2 * self.down(functional.gelu(self.up(normed), approximate="tanh"))


class Transformer(nn.Module):
    """(batch, channels, side, side) and times (batch,) → velocity, the same shape."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        inside, tokens = shape.channels * PATCH**2, (shape.side // PATCH) ** 2
        self.patches = nn.Linear(inside, shape.width)
        self.places = nn.Parameter(0.02 * torch.randn(1, tokens, shape.width))
        self.time1, self.time2 = nn.Linear(shape.width, shape.width), nn.Linear(shape.width, shape.width)
        self.blocks = nn.ModuleList(_Block(shape.width, shape.heads) for _ in range(shape.blocks))
        self.modulation = nn.Linear(shape.width, 2 * shape.width)
        self.velocity = nn.Linear(shape.width, inside)
        for layer in (self.modulation, self.velocity):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        """The velocity."""
        hidden = self.patches(functional.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)) + self.places
        time = functional.silu(self.time2(functional.silu(self.time1(_waves(times, self.shape.width)))))
        for block in self.blocks:
            hidden = block(hidden, time)
        shift, scale = self.modulation(time).unsqueeze(1).chunk(2, -1)
        hidden = functional.layer_norm(hidden, hidden.shape[-1:]) * (1 + scale) + shift
        rows = self.velocity(hidden).transpose(1, 2)
        return functional.pixel_shuffle(rows.unflatten(2, (x.shape[2] // PATCH, -1)), PATCH)


def _waves(times: Tensor, width: int) -> Tensor:
    """(batch, width): sines and cosines of a time from 0 to 1."""
    frequencies = torch.exp(-math.log(10000) * torch.arange(width // 2, device=times.device) / (width // 2))
    angles = 1000 * times.unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def write(file: Path, transformer: Transformer, mean: Tensor, deviation: Tensor, about: dict[str, Any]) -> None:
    """One safetensors file, float16.

    Args:
        mean, deviation: (channels,) of the latents that it was trained on, which it sees normalized.
        about: how it was trained: `trained`, on what, and `cpu_seconds`, for how long.
    """
    tensors = {f"transformer.{name}": value for name, value in transformer.state_dict().items()}
    tensors |= {"mean": mean, "deviation": deviation}
    half = {name: value.half().contiguous() for name, value in tensors.items()}
    header = json.dumps({"shape": asdict(transformer.shape), **about})
    write_bytes(file, save(half, {KEY: header}))


def read(file: Path) -> tuple[Transformer, Tensor, Tensor, dict[str, Any]]:
    """What `write` wrote: transformer, mean, deviation, and how it was trained.

    Raises:
        InputError: there is no such file, or it is another one.
        ModelError: its tensors are others than its shape says.
    """
    if not file.is_file():
        raise InputError(f"{str(file)!r} does not exist; scripts/landscape_dit.py trains a transformer and writes it")
    try:
        with safe_open(file, "pt") as opened:
            about = json.loads((opened.metadata() or {})[KEY])
            tensors = {name: opened.get_tensor(name).float() for name in opened.keys()}  # noqa: SIM118
        transformer = Transformer(Shape(**about.pop("shape")))
        mean, deviation = tensors.pop("mean"), tensors.pop("deviation")
        about |= {"trained": str(about["trained"]), "cpu_seconds": float(about["cpu_seconds"])}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{str(file)!r} is no transformer of scripts/landscape_dit.py ({first_line(error)}); train one with that"
        ) from error
    own = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    with_weights(transformer, own, f"the transformer in {file.name!r}")
    return transformer, mean, deviation, about
