"""Distortions of models of images: KL of the classes that they name, and distances of the vectors that they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from natprec.distortions.feature_distance import FeatureDistance
from natprec.distortions.next_token import OutputKL
from natprec.errors import ModelError
from natprec.tasks import IMAGE_CLASSIFIER, IMAGE_ENCODER, Samples


class ClassKL(OutputKL):
    """KL(original || quantized) of the classes of each image; the default for image classifiers."""

    name = "class-kl"
    label = "KL of classes"
    unit = "nats per image"
    term = "images"
    task = IMAGE_CLASSIFIER

    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """Logits of the classes: (batch, 1, classes).

        Raises:
            ModelError: there is one class, of which no KL is anything but 0.
        """
        logits: Tensor = IMAGE_CLASSIFIER.forward(model, samples).logits
        if logits.shape[-1] < 2:
            raise ModelError(
                f"model {type(model).__name__} has {logits.shape[-1]} class, of which no KL is anything but 0; save "
                "its body (AutoModel) and quantize that as an image encoder"
            )
        return logits.unsqueeze(1)

    def terms(self, length: int) -> int:
        """An image is one term, whatever its size."""
        return 1


class ImageDistance(FeatureDistance):
    """‖f - f'‖² of vectors of length 1 that an encoder makes of an image.

    Args:
        name: in files and on the command line.
        vectors: the encoder's output → (batch, …).
    """

    task = IMAGE_ENCODER
    term = "images"

    def __init__(self, name: str, letter: str, vectors: Callable[[Any], Tensor]) -> None:
        def features(model: nn.Module, samples: Samples) -> Tensor:
            found = vectors(IMAGE_ENCODER.forward(model, samples))
            return functional.normalize(found.float().flatten(1), dim=-1)

        super().__init__(features)
        self.name, self.unit = name, f"‖{letter} - {letter}'‖² per image"


def embedded(output: Any) -> Tensor:
    """An image as a whole, (batch, …): the encoder's projection, its pooled vector, or the mean of all places."""
    for name in ("image_embeds", "pooler_output"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    hidden: Tensor = output.last_hidden_state
    return hidden.mean(1) if hidden.dim() == 3 else hidden.mean(tuple(range(2, hidden.dim())))


def every_place(output: Any) -> Tensor:
    """The last hidden state of all tokens or places."""
    hidden: Tensor = output.last_hidden_state
    return hidden


CLASS_KL = ClassKL()
"""Of an image classifier."""

IMAGE_EMBEDDING = ImageDistance("image-embedding", "e", embedded)
IMAGE_FEATURES = ImageDistance("image-features", "f", every_place)
"""Of an image as a whole, and of all its places: what a detector or a language model reads of a vision tower."""
