"""The original model beside the rounded one: how far apart their outputs are, and the slope of that.

Both have the same modules, which hold the weights of one or the other. Products are in the arithmetic that the machine
is fast in. A backward pass needs what every layer was given; where that does not fit into memory, only each segment's
input is kept, and a segment runs again on the way back (Chen et al. 2016, arXiv:1604.06174).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from natprec.models.devices import free_bytes
from natprec.models.layers import layer_of
from natprec.models.segments import SegmentedModel
from natprec.models.weights import put_in
from natprec.tasks import Samples

ACTIVATIONS = 8
"""Bytes that a backward pass keeps for each input and output of a layer, with what lies between layers."""

OUTPUTS = 6
"""Tensors of the size of the output that stand beside each other."""


class Teacher:
    """Answers of the original model, whose weights are put in for the time that it takes."""

    def __init__(self, segmented: SegmentedModel, weights: Mapping[str, Tensor]) -> None:
        """Weights: of the original, by the names of parameters."""
        self._segmented, self._weights = segmented, dict(weights)

    @torch.no_grad()
    def output(self, samples: Samples) -> Tensor:
        """What the original puts out, (batch, terms, size)."""
        with put_in(self._segmented.model, self._weights), self._segmented.gathering():
            return self._segmented.output(samples)

    def descend(
        self,
        samples: Samples,
        parameters: Sequence[nn.Parameter],
        by_segment: bool | None = None,
        fraction: float = 1.0,
    ) -> None:
        """Leave the gradient of the mean distortion of a batch in the parameters' `grad`.

        Args:
            by_segment: whether segments run again on the way back; default: where memory asks for it.
            fraction: the part of a step's text that the batch is, by which the gradient is multiplied.
        """
        target, segmented = self.output(samples), self._segmented
        if by_segment is None:
            needed, free = _kept_bytes(segmented, samples, target), free_bytes(str(samples.device), None)
            by_segment = bool(segmented.blocks) and needed > free

        def slope(output: Tensor) -> Tensor:
            return segmented.distortion.slope(target, output, samples) * fraction

        with torch.enable_grad(), _differentiable(parameters):
            if by_segment:
                _back_by_segment(segmented, samples, slope)
                return
            with segmented.gathering():
                output = segmented.output(samples)
            slope(output).backward()


class HeldBack:
    """Text that judges: the original's answers are kept before its last segment, whose output would be far larger.

    Of several processes each runs its own batches.
    """

    def __init__(self, segmented: SegmentedModel, weights: Mapping[str, Tensor], samples: Samples) -> None:
        batches = samples.split()
        own = segmented.workers.share(len(batches))
        self._segmented, self._batches, self._count = segmented, batches[own.start : own.stop], len(samples)
        self._first = sum(map(len, batches[: own.start]))
        self._weights = dict(weights)
        with torch.no_grad(), put_in(segmented.model, self._weights), segmented.gathering():
            self._hidden = [_before_suffix(segmented, batch) for batch in self._batches]

    def distortion(self) -> float:
        """Of the model as it is now: the mean over all of the text, the same at all processes."""
        return float(self.by_sample().mean())

    @torch.no_grad()
    def by_sample(self) -> np.ndarray:
        """(samples,), the same of each."""
        segmented, found = self._segmented, torch.zeros(self._count, dtype=torch.float64)
        place = self._first
        for hidden, batch in zip(self._hidden, self._batches, strict=True):
            with segmented.gathering():
                with put_in(segmented.model, self._weights):
                    target = segmented.suffix(hidden, batch)
                output = segmented.output(batch)
            distances = segmented.distortion.between(target.float(), output.float(), batch)
            found[place : place + len(batch)] = distances.flatten(1).mean(1)
            place += len(batch)
        (found_by_all,) = segmented.workers.all_sum(found)
        return found_by_all.numpy()


def _before_suffix(segmented: SegmentedModel, samples: Samples) -> Tensor | None:
    """What the last block returns; None where there are no blocks."""
    if not segmented.blocks:
        return None
    hidden, contexts = segmented.prefix(samples)
    for index, context in enumerate(contexts):
        hidden = segmented.block(index, hidden, context)
    return hidden


@contextlib.contextmanager
def _differentiable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within the block parameters take part in backward passes."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _back_by_segment(segmented: SegmentedModel, samples: Samples, slope: Callable[[Tensor], Tensor]) -> None:
    """Forward without a graph, then back through one segment after another, each run again."""
    inputs: list[Tensor] = []
    with torch.no_grad(), segmented.gathering():
        hidden, contexts = segmented.prefix(samples)
        for index, context in enumerate(contexts):
            inputs.append(hidden)
            hidden = segmented.block(index, hidden, context)
    hidden = hidden.detach().requires_grad_()
    with segmented.gathering():
        output = segmented.suffix(hidden, samples)
    slope(output).backward()
    gradient = hidden.grad
    for index in reversed(range(len(inputs))):
        hidden = inputs.pop().detach().requires_grad_()
        with segmented.gathering():
            output = segmented.block(index, hidden, contexts[index])
        output.backward(gradient)
        gradient = hidden.grad
    with segmented.gathering():
        first = segmented.prefix(samples)[0]
    if first.requires_grad:  # else nothing of the prefix is learned
        first.backward(gradient)


def _kept_bytes(segmented: SegmentedModel, samples: Samples, output: Tensor) -> int:
    """About what a backward pass of a whole batch keeps."""
    layers = [layer for module in segmented.model.modules() if (layer := layer_of(module)) is not None]
    sides = sum(sum(layer.shape) for layer in layers if not layer.kind.looks_up)
    return ACTIVATIONS * samples.tokens * sides + OUTPUTS * 4 * output.numel()
