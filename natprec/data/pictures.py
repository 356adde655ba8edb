"""A folder of pictures: found, read whatever their mode and size, and brought to one size.

Pictures of one size are samples of one shape, whatever a model's preprocessing makes of them (an image, tiles, or as
many patches as fit). They are cut, not stretched.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natprec.data.folders import PICTURES
from natprec.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

LONGEST_SIDE = 448
"""Pixels, of the one size: a model that divides pictures into patches gives this one 256 tokens of 28 x 28 pixels."""


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder: see `natprec.data.folders.Kind.find`."""
    return PICTURES.find(folder)


def read_picture(file: Path) -> Image:
    """A picture in RGB, upright, of an animation the first frame; what is transparent becomes white.

    Raises:
        InputError: it cannot be read; names it.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise InputError(f"reading {str(file)!r} needs pillow; run: pip install pillow") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as opened:
                return _rgb(ImageOps.exif_transpose(opened))
    except Exception as error:  # a decoder for each format, each with errors of its own
        raise InputError(
            f"picture {str(file)!r} cannot be read ({first_line(error)}); repair it or take it out of the folder"
        ) from error


def _rgb(picture: Any) -> Image:
    """From whatever mode: CMYK, grey of 16 bits, a palette, transparency."""
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # 16 or 32 bits: to the range of 8
        values = np.asarray(picture, dtype=np.float64)
        top = 65535.0 if values.max(initial=0) > 255 else 255.0
        picture = Image.fromarray((values.clip(0, top) * (255 / top)).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        picture = Image.alpha_composite(white, clear)
    found: Image.Image = picture.convert("RGB")
    return found


def common_size(files: Sequence[Path]) -> tuple[int, int]:
    """(width, height), the medians of these pictures, made smaller where one is more than `LONGEST_SIDE`.

    Raises:
        InputError: a picture cannot be read.
    """
    sizes = [read_picture(file).size for file in files]
    width, height = (sorted(size[side] for size in sizes)[len(sizes) // 2] for side in (0, 1))
    smaller = min(1.0, LONGEST_SIDE / max(width, height))
    return max(1, round(width * smaller)), max(1, round(height * smaller))


def of_size(file: Path, size: tuple[int, int]) -> Image:
    """The middle of a picture, cut to the size's proportions and brought to it.

    Raises:
        InputError: it cannot be read.
    """
    from PIL import Image, ImageOps

    return ImageOps.fit(read_picture(file), size, Image.Resampling.BICUBIC)
