"""A folder of pictures: found, read whatever their mode and size, and brought to one size.

Pictures of one size are samples of one shape, whatever a model's preprocessing makes of them (an image, tiles, or as
many patches as fit). They are cut, not stretched.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from natprec.errors import InputError, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
"""Of files that are pictures; others in the folder are passed over."""

MOST = 512
"""Pictures that are taken of a folder, spread over it; each is read before a model is loaded."""

LONGEST_SIDE = 448
"""Pixels, of the one size: a model that divides pictures into patches gives this one 256 tokens of 28 x 28 pixels."""

HELD_OUT = 4
"""One in so many pictures judges."""


def find_pictures(folder: str | Path) -> list[Path]:
    """The pictures of a folder and of those within it, by name, each content once, at most `MOST`.

    Raises:
        InputError: no folder, or not two different pictures: one to measure on and one to judge on.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        what = "is no folder" if place.exists() else "does not exist"
        raise InputError(f"images {str(folder)!r} {what}; give a folder of pictures")
    files = sorted(file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise InputError(
            f"images {str(folder)!r} holds no picture ({', '.join(SUFFIXES[:4])} …); give a folder of pictures"
        )
    files = [files[number * len(files) // min(MOST, len(files))] for number in range(min(MOST, len(files)))]
    different = {hashlib.sha256(file.read_bytes()).digest(): file for file in reversed(files)}
    if len(different) < 2:
        raise InputError(
            f"images {str(folder)!r} holds one picture ({files[0].name!r}); give two or more, as those that are "
            "measured on do not judge"
        )
    return sorted(different.values())


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


def divided(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Those to measure on, and those that judge: at least one of each.

    >>> [[file.name for file in part] for part in divided([Path(name) for name in "abcdef"])]
    [['a', 'b', 'd', 'e', 'f'], ['c']]
    """
    judging = {number for number in range(len(files)) if number % HELD_OUT == HELD_OUT // 2} or {len(files) - 1}
    measured = [file for number, file in enumerate(files) if number not in judging]
    return measured, [file for number, file in enumerate(files) if number in judging]
