"""Images for a model of images: a folder of them, made ready by the model's own processor.

Their place in the folder decides which of them judge; an image that was measured on, in whatever file, does not judge.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from natprec.data.folders import divided, spread_over
from natprec.data.pictures import common_size, find_pictures, of_size, read_picture
from natprec.data.seen import NO_PIECES, Pieces, unseen_samples
from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.tasks import Samples
from natprec.tasks.images import ready

if TYPE_CHECKING:
    from PIL.Image import Image

LEAST_SIDE = 16
"""Pixels: a smaller picture is made larger, as a processor cannot tell the colours of 1 x 1 x 3 from its places."""

Progress = Callable[[int, int], None]


def read_images(
    processor: Any,
    source: str | None,
    *,
    sequences: int,
    length: int,
    split: str,
    model: Any,
    shared: bool = False,
    progress: Progress = lambda done, total: None,
    note: Callable[[str], None] = lambda line: None,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
    **of_text: Any,
) -> Samples:
    """Images of a folder, spread over it: as many as take `sequences * length` positions in the model, or all.

    Args:
        processor: of transformers; `source`: the folder; `model`: that they are for.
        split: 'calibration' or 'held-out'; `shared`: whether both come out of this folder.
        progress: told (positions done, positions in all).
        note: gets a line where there are fewer than were asked for.
        seen: of what was measured on; images among it are left out.
        least: images that are enough; default: one.
        of_text: what a text would be asked for.
    Raises:
        InputError: no folder, no image, a broken one, or too few that were not measured on.
        ModelError: the processor and the model do not go together.
    """
    if source is None:
        option = "--data" if split == "calibration" else "--eval-data"
        raise InputError(f"no images, and a model of images makes none; name a folder of them with {option}")
    files = find_pictures(source)
    if shared:
        files = divided(files)[split == "held-out"]
    tried = _tried(processor, model, files[0])
    wanted = max(1, sequences * length // tried.length)
    chosen = spread_over(files, wanted)
    count = len(chosen)
    made = []
    for done, file in enumerate(chosen, start=1):
        made.append(_pixels(processor, _large(read_picture(file)), file))
        progress(done * sequences * length // count, sequences * length)
    if len({each.shape for each in made}) > 1:  # a processor that keeps proportions
        size = common_size(files)
        made = [_pixels(processor, _large(of_size(file, size)), file) for file in chosen]
    samples = unseen_samples(
        ready(model, torch.cat(made)), seen, least, f"images in {source!r}", "judge on another folder with --eval-data"
    )
    if count < wanted and split == "calibration":
        note(f"{source!r} has {count} images to measure on; --tokens would take {wanted}")
    return samples


def _tried(processor: Any, model: Any, file: Path) -> Samples:
    """One image that the model has been given.

    Raises:
        ModelError: it does not take what the processor makes.
    """
    pixels = _pixels(processor, _large(read_picture(file)), file)
    try:
        with torch.no_grad():
            samples = ready(model, pixels.to(next(model.parameters()).device))
            model(**samples.tensors)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ModelError(
            f"model {type(model).__name__} cannot be given the {tuple(pixels.shape)} that its processor makes of "
            f"{file.name!r} ({first_line(error)}); take the processor of the same model"
        ) from error
    return samples


def _pixels(processor: Any, picture: Image, file: Path) -> Tensor:
    """(1, channels, height, width).

    Raises:
        ModelError: the processor fails.
    """
    try:
        made = processor(images=[picture], return_tensors="pt")
        pixels: Tensor = made["pixel_values"]
    except NatprecError:
        raise
    except Exception as error:  # whatever a processor raises
        raise ModelError(
            f"the processor {type(processor).__name__} cannot be given the picture {str(file)!r} "
            f"({first_line(error)}); take the picture out of the folder, or the processor of the same model"
        ) from error
    return pixels


def _large(picture: Image) -> Image:
    """A picture whose sides are `LEAST_SIDE` or more."""
    width, height = picture.size
    if min(width, height) >= LEAST_SIDE:
        return picture
    return picture.resize((max(width, LEAST_SIDE), max(height, LEAST_SIDE)))
