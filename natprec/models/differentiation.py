"""One segment forward and back: for hooks that watch it, and for the gradient at its input."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from natprec.errors import ModelError, first_line
from natprec.models.segments import Context, SegmentedModel
from natprec.tasks import Samples

Gathering = Callable[[], contextlib.AbstractContextManager[object]]
"""What stands around a forward that serves averages: see `SegmentedModel.gathering`."""


@torch.enable_grad()
def differentiate(
    segmented: SegmentedModel,
    segment: int,
    hidden: Tensor | None,
    samples: Samples,
    contexts: list[Context],
    incoming: Tensor | None,
    sequences: Sequence[int],
    seed: int,
    gathering: Gathering,
) -> None:
    """Run a segment and go back through it, for the hooks that watch and for the gradient of `hidden`.

    Args:
        incoming: the gradient at the output of a batch; the last segment draws its own.
        sequences: numbers of the batch's sequences, by which it draws.
        gathering: around the way forward, which decides what products are computed in.
    Raises:
        ModelError: the model's own code refuses to be differentiated as it runs (Reformer does), or no gradient reaches
            what it has of known layers (I-BERT, whose layers compute with integers).
    """
    with gathering():
        output = segmented.run(segment, hidden, samples, contexts).float()
    last = segment == len(segmented.blocks)
    if last and not output.requires_grad:
        raise ModelError(
            f"no gradient reaches a layer of {type(segmented.model).__name__} that natprec quantizes: its own layers "
            "are of kinds that natprec does not know"
        )
    assert last or incoming is not None or not output.requires_grad
    try:
        if last:
            segmented.distortion.draw(output, sequences, seed).backward()
        elif incoming is not None and output.requires_grad:
            output.backward(incoming.to(output.device))
    except AssertionError as error:
        raise ModelError(
            f"{type(segmented.model).__name__} cannot be differentiated as it runs ({first_line(error)}); natprec "
            "measures by gradients, and this model has none to give"
        ) from error
