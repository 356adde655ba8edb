"""Photographs to measure on: those in the wheels of scikit-image and scikit-learn, or a folder of one's own."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from natprec.data.pictures import find_pictures, read_picture
from natprec.errors import InputError

KNOWN = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}
"""Package → folder in it, and its photographs in colour."""

COUNT = 8
"""Crops that are made for each seed; of photographs in turn."""


def crops(folder: str | None, side: int) -> Callable[[int], Tensor]:
    """Seed → (`COUNT`, 3, side, side) in [0, 1]: squares of half a photograph's shorter side, anywhere in it.

    Args:
        folder: of pictures; None: those of the wheels that are installed.
    Raises:
        InputError: there are none, or one cannot be read.
    """
    files = find_pictures(folder) if folder is not None else known()
    pictures = [read_picture(file) for file in files[:COUNT]]

    def made(seed: int) -> Tensor:
        from PIL import Image

        draw, found = np.random.default_rng(seed), []
        for number in range(COUNT):
            picture = pictures[number % len(pictures)]
            half = max(1, min(picture.size) // 2)
            left, top = (int(draw.integers(0, each - half + 1)) for each in picture.size)
            cut = picture.crop((left, top, left + half, top + half)).resize((side, side), Image.Resampling.BICUBIC)
            found.append(torch.from_numpy(np.asarray(cut, dtype=np.float32) / 255))
        return torch.stack(found).permute(0, 3, 1, 2).contiguous()

    return made


def known() -> list[Path]:
    """The photographs of the packages that are installed.

    Raises:
        InputError: none is.
    """
    found: list[Path] = []
    for package, (folder, names) in KNOWN.items():
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec is not None else []:
            found += [file for name in names if (file := Path(place) / folder / name).is_file()]
    if not found:
        raise InputError("no photographs to measure on: pip install scikit-image, or name a folder with --data")
    return found
