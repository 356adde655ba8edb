"""Models of images: those that name what is seen, and those that turn an image into vectors; their convolutions are
sites.

An image takes as many positions as a transformer makes tokens of it. Of a model that makes none, a patch of 16 x 16
pixels counts as one, which is what the memory of a run goes by.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from natprec.tasks.samples import Samples
from natprec.tasks.task import Metric, Task

PATCH, SIDE, CHANNELS = 16, 224, 3
"""Pixels of a position's side, and of an image's where a configuration says nothing; colours."""


class _ImageTask(Task):
    """What all models of images have in common: pixels."""

    reader = "images"
    material = "images"
    convolutions = True

    def probe(self, model: Any) -> Samples:
        """Noise of the size that the configuration names."""
        return self.made_up(model, 1, 0, seed=0)

    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """Noise; `length` is what the model makes of its size."""
        height, width = image_size(model.config)
        channels = getattr(model.config, "num_channels", CHANNELS)
        draw = torch.Generator().manual_seed(height if seed is None else seed)
        pixels = torch.randn(count, channels, height, width, generator=draw)
        device = next(model.parameters()).device
        return ready(model, pixels if device.type == "meta" else pixels.to(device))

    def longest(self, config: Any, processor: Any) -> int | None:
        """An image has the positions that it has."""
        return None

    def does_without(self, model: Any, missing: Iterable[str]) -> bool:
        """A pooler, as of text."""
        only = all(name.startswith("pooler.") for name in missing) and hasattr(model, "pooler")
        if only:
            model.pooler = None
        return only


class ImageClassifier(_ImageTask):
    """It says which of its classes an image is of."""

    name = "image-classifier"
    noun = "an image classifier"
    family = "AutoModelForImageClassification"
    distortion = "class-kl"
    metrics: tuple[Metric, ...] = (
        Metric(
            "top1_agreement",
            lambda one, two, _: (one.argmax(-1) == two.argmax(-1)).double(),
            lambda same: float(same.mean()),
        ),
    )


class ImageEncoder(_ImageTask):
    """It turns an image into vectors, without a head."""

    name = "image-encoder"
    noun = "an image encoder"
    family = "AutoModel"
    distortion = "image-embedding"


def image_size(config: Any) -> tuple[int, int]:
    """(height, width) in pixels, by a model's configuration.

    >>> image_size(type("Config", (), {"image_size": [32, 48]})), image_size(object())
    ((32, 48), (224, 224))
    """
    found = getattr(config, "image_size", SIDE)
    found = [found["height"], found["width"]] if isinstance(found, dict) else found
    height, width = (found, found) if isinstance(found, int) else found
    return int(height), int(width)


def ready(model: Any, pixels: Tensor) -> Samples:
    """Images as a model is given them, (samples, channels, height, width)."""
    return Samples({model.main_input_name: pixels}, positions(model, pixels))


def positions(model: nn.Module, pixels: Tensor) -> int:
    """Tokens that a model's blocks make of an image, else patches; nothing is computed for it.

    Args:
        pixels: (samples, channels, height, width).
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
    height, width = pixels.shape[-2:]
    patches = max(1, height * width // PATCH**2)
    if not lists:
        return patches
    blocks = max(lists, key=lambda several: sum(each.numel() for each in several.parameters()))
    shapes: list[torch.Size] = []

    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        shapes.extend(each.shape for each in args[:1] if isinstance(each, Tensor))

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    empty = {name: torch.empty_like(each, device="meta") for name, each in tensors.items()}
    image = torch.empty(1, *pixels.shape[1:], device="meta", dtype=pixels.dtype)
    handles = [block.register_forward_pre_hook(note) for block in blocks]
    try:
        with torch.no_grad():
            functional_call(model, empty, (image,))
    except Exception:  # what a model's own code raises where numbers are missing: its batches are smaller or larger
        shapes.clear()
    finally:
        for handle in handles:
            handle.remove()
    tokens = {shape[1] for shape in shapes if len(shape) == 3 and shape[0] == 1}
    return tokens.pop() if len(tokens) == 1 and len(shapes) == len(blocks) else patches


IMAGE_CLASSIFIER: Task = ImageClassifier()
IMAGE_ENCODER: Task = ImageEncoder()
IMAGE_TASKS = (IMAGE_CLASSIFIER, IMAGE_ENCODER)
