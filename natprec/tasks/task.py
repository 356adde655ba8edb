"""One use of models, and what follows from it.

A checkpoint says which task it is of: `natprec.models.model_files.task_of`. A task reads no files itself; it names the
reader that makes its samples of a source, see `natprec.data.readers`.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from natprec.tasks.samples import Samples


def positions_of(config: Any) -> int | None:
    """Positions that a model of transformers has; None where it bounds none, or says so with -1 as XLNet does."""
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@dataclass(frozen=True)
class Metric:
    """A figure that a verification reports beside the distortion.

    Attributes:
        name: the field of verification.json.
        values: (reference's output, quantized output, samples) → what the figure is made of, the first dimension that
            of the samples.
        total: that of all samples → the figure.
    """

    name: str
    values: Callable[[Tensor, Tensor, Samples], Tensor]
    total: Callable[[np.ndarray], float]


class Task(ABC):
    """What a model is for.

    Attributes:
        name: in the jobs of `natprec compare`.
        noun: in messages, with its article.
        family: the class of transformers that loads such a model.
        distortion: name of the one that is taken unless another is asked for.
        reader: name of what makes samples of a source: see `natprec.data.readers`.
        material: what samples are made of, in messages.
        generates: whether such a model writes text token by token, and keeps keys and values of what it has read.
        metrics: what is reported of outputs that a distortion for this task compares.
        convolutions: whether those of such a model are sites.
        own: what samples are called that the reader makes without a source; empty: it needs one.
    """

    name: str
    noun: str
    family: str
    distortion: str
    reader: str
    material: str = "text"
    generates: bool = False
    metrics: tuple[Metric, ...] = ()
    convolutions: bool = False
    own: str = ""

    @property
    def loader(self) -> Any:
        """The class `family`."""
        import transformers

        return getattr(transformers, self.family)

    def suits(self, other: Task | None) -> bool:
        """Whether what is made for models of another task (None: for any) reads what those of this one put out."""
        return other is None or isinstance(self, type(other))

    def inputs(self, samples: Samples) -> dict[str, Any]:
        """What the model's forward is called with."""
        return dict(samples.tensors)

    def forward(self, model: nn.Module, samples: Samples) -> Any:
        """The model's output for a batch, as transformers returns it."""
        return model(**self.inputs(samples))

    def part(self, model: Any) -> Any:
        """What of a model in memory is measured."""
        return model

    def probing(self, name: str) -> contextlib.AbstractContextManager[None]:
        """What stands around the first run of a model on its probe."""
        return contextlib.nullcontext()

    @abstractmethod
    def probe(self, model: Any) -> Samples:
        """One small sample, to see how a model is put together."""

    @abstractmethod
    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """Random samples: to time a model, or to see whether a change keeps its function.

        Args:
            length: positions in each.
            seed: default: one that depends on the model alone.
        """

    def longest(self, config: Any, processor: Any) -> int | None:
        """Most positions of a sample; None where nothing says so."""
        return positions_of(config)

    def does_without(self, model: Any, missing: Iterable[str]) -> bool:
        """Whether the output does not depend on tensors that a checkpoint lacks; their module is taken out."""
        return False
