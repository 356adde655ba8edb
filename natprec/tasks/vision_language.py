"""Vision-language models: a language model that reads text and, through a vision tower and a projector, pictures.

Text alone reaches the language model; what only pictures reach is measured where samples have pictures. A sample with
a picture is a prompt with the picture's tokens, then text about it. What the model predicts before it has read the
picture, and at the picture's own tokens, nobody reads: `COUNTED` says which positions a distortion is of.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from natprec.errors import ModelError, first_line
from natprec.tasks.samples import COUNTED, TOKENS, Samples
from natprec.tasks.text import CausalLanguageModel, where_counted

NOT_TEXT = re.compile(r"(image|video|audio|vision|boi|eoi|boa|eoa|frame).*token_(id|index)")
"""Entries of a configuration that say which tokens stand for something else than text."""


class VisionLanguageModel(CausalLanguageModel):
    """It predicts the next token of text and pictures."""

    name = "vision-language"
    noun = "a vision-language model"
    family = "AutoModelForImageTextToText"
    metrics = tuple(where_counted(metric) for metric in CausalLanguageModel.metrics)

    @contextlib.contextmanager
    def probing(self, name: str) -> Iterator[None]:
        """Some of these classes need a picture, or write what is no text."""
        try:
            yield
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(
                f"model {name!r} has no language model that reads text alone ({first_line(error)}); natprec takes "
                "vision-language models that do, or the language model itself, saved as a folder of its own"
            ) from error

    def inputs(self, samples: Samples) -> dict[str, Any]:
        """The processor's tensors of those samples that have a picture, as it gives them for a batch.

        `Samples` have one entry for each sample, and zeros in place of pictures where there are none; a model wants the
        pictures of a batch one after the other, whatever it is that it calls one (an image, a tile, a patch).
        """
        tensors = dict(samples.tensors)
        counted = tensors.pop(COUNTED, None)
        pictured = None if counted is None else ~counted.all(1)
        if pictured is None or not pictured.any():
            return {TOKENS: samples.ids, "use_cache": False}
        by_position = {name: tensor for name, tensor in tensors.items() if tensor.shape == samples.ids.shape}
        pictures = {name: tensor[pictured].flatten(0, 1) for name, tensor in tensors.items() if name not in by_position}
        return {**by_position, **pictures, "use_cache": False}


def not_text(config: Any) -> list[int]:
    """Tokens that no text has, in which pictures and the like are put; none of a model that reads text alone."""
    found = {
        value
        for name, value in getattr(config, "__dict__", {}).items()
        if NOT_TEXT.fullmatch(name) and isinstance(value, int)
    }
    return sorted(found)


def with_pictures(text: Samples | None, pictured: Samples) -> Samples:
    """Samples of text, then samples with pictures, of one length."""
    if text is None:
        return pictured
    blank: dict[str, Tensor] = {}
    for name, tensor in pictured.tensors.items():
        shape = (len(text), *tensor.shape[1:])
        blank[name] = torch.full(shape, name == COUNTED, dtype=tensor.dtype, device=tensor.device)
    return Samples({**blank, TOKENS: text.ids.to(pictured.device)}, text.length).followed_by(pictured)


VISION_LANGUAGE = VisionLanguageModel()
