"""What every rounding says of itself, in the file of its name in this folder: how it rounds a segment, what that costs.

Such a file has a `Rounder` under the name `ROUNDER`. What it needs of the text is in `natprec.roundings`; whoever goes
through the model provides it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.models.hidden_states import HiddenStates
from natprec.models.segments import SegmentedModel
from natprec.quantizers import Extent, QuantizedTensor
from natprec.quantizers.hessian import Hessian
from natprec.rounding.moments import Gradients, segment_moments
from natprec.rounding.segment import SegmentRounder
from natprec.roundings import rounding_named
from natprec.tasks import Samples
from natprec.utils.progress import Advance

GRADIENTS = 4.0
"""Forwards of the whole text that its gradients take: one, and the way back, which goes through each block again."""


@dataclass(frozen=True)
class Run:
    """One way through a model.

    Attributes:
        text: on its way through the rounded model; None for a rounding that needs nothing of it.
        gradients: of the original's distortion, for a rounding that needs them, or for embeddings alone.
        seed: of what a rounding draws.
        advance: called once per batch of forward work.
    """

    segmented: SegmentedModel
    work: SegmentRounder
    text: HiddenStates | None
    gradients: Gradients | None
    seed: int
    advance: Advance


@dataclass(frozen=True)
class Pace:
    """How fast a machine is with a model, and how much there is to do.

    Attributes:
        tokens: of the calibration text; `batch`: of a batch of it.
        moved: weights of all blocks.
        forward, gathering: seconds per token of a forward, in float32 and as it runs for statistics.
        lookups: whether there may be embeddings, and for them alone gradients.
    """

    tokens: int
    batch: int
    moved: int
    forward: float
    gathering: float
    lookups: bool = False


class Rounder(ABC):
    """Rounds one segment of a model after another.

    Attributes:
        forwards: of the whole text, for all that it gathers.
        rounding: the rounding itself, in forwards in float32.
        divides: whether several processes each take a part of every batch, not some whole ones.
    """

    forwards: ClassVar[float] = 0.0
    rounding: ClassVar[float] = 0.0
    divides: ClassVar[bool] = False

    def __init__(self, run: Run) -> None:
        """Begin before the prefix."""
        self.run = run

    def watch(self, segment: int) -> None:  # noqa: B027  # most have nothing to see
        """Look at a segment whose weights are still the original's."""

    @abstractmethod
    def round(self, segment: int) -> dict[str, QuantizedTensor]:
        """Codes of a held segment's sites by name; its weights become those that an engine reconstructs."""

    @classmethod
    def more_batches(cls, segmented: SegmentedModel, samples: Samples) -> int:
        """At most how often it calls `advance`, beside what its text and gradients take."""
        return 0

    @classmethod
    def seconds(cls, pace: Pace) -> float:
        """What it takes."""
        return pace.tokens * (pace.gathering * cls.forwards + pace.forward * cls.rounding)


class ByMoments(Rounder):
    """Rounds what has inputs of its own by what the rounded model before it puts in; the rest to nearest.

    What is looked up has gradients in place of inputs.
    """

    def round(self, segment: int) -> dict[str, QuantizedTensor]:
        """See `Rounder.round`."""
        work = self.run.work
        nearest = work.to_nearest(segment, [site for site in work.sites if not work.compensates(site)])
        return nearest | self.members(segment)[0]

    def members(self, segment: int) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
        """Round the sites with moments of their own; returns by name their codes, and the weights that were rounded."""
        run = self.run
        assert run.text is not None
        lookups = None if run.gradients is None else run.gradients.lookups
        moments = segment_moments(
            run.segmented, run.work.members(segment), run.text, segment, self.gathered(), run.advance, lookups
        )
        return run.work.by_moments(segment, moments, self.weight)

    @classmethod
    def seconds(cls, pace: Pace) -> float:
        """See `Rounder.seconds`."""
        return super().seconds(pace) + pace.lookups * GRADIENTS * pace.tokens * pace.gathering

    def gathered(self) -> Gradients | None:
        """The gradients whose moments are gathered beside those of inputs."""
        return None

    @abstractmethod
    def weight(
        self,
        weight: Tensor,
        inputs: Hessian,
        errors: Tensor | None,
        fmt: Format,
        scale_dtype: torch.dtype,
        extent: Extent | None,
    ) -> QuantizedTensor:
        """Round one weight.

        Args:
            weight: (rows, columns).
            errors: (rows, rows), Σ g gᵀ of the gradients at its outputs, where they were gathered.
            extent: of the weight together with those that share its outer scale; None: its own.
        """


def rounder_named(name: str) -> type[Rounder]:
    """The one in the file of this name.

    Raises:
        InputError: there is no such rounding.
    """
    found: type[Rounder] = import_module(f"natprec.rounding.{rounding_named(name).name}").ROUNDER
    return found
