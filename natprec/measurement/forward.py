"""Forward-only passes: they cache every block's input for the backward pass, and gather moments for GPTQ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from natprec.measurement.block_inputs import BlockInputs
from natprec.models.differentiation import Gathering
from natprec.models.segments import Context, SegmentedModel
from natprec.tasks import Samples
from natprec.utils.progress import Advance
from natprec.utils.workers import Workers


@torch.no_grad()
def forward_blocks(
    segmented: SegmentedModel,
    samples: Samples,
    stop: int,
    advance: Advance = lambda step: None,
    scratch: Path | None = None,
) -> tuple[BlockInputs, list[list[Context]]]:
    """Inputs of blocks 0 to `stop` (each (samples, positions, hidden)), and contexts per batch; none without blocks."""
    if not segmented.blocks:
        return BlockInputs(), []
    parts, contexts = [], []
    with segmented.hold(-1):
        for some in samples.split(segmented.together):
            hidden, context = segmented.prefix(some)
            parts.append(hidden)
            contexts.append(context)
            advance("prefix forward")
    hidden = torch.cat(parts)
    inputs = BlockInputs.suited(hidden, stop + 1, scratch)
    for index in range(stop):
        output = torch.empty_like(hidden)
        with segmented.hold(index):
            for batch, context in zip(samples.batches(segmented.together), contexts, strict=True):
                output[batch] = segmented.block(index, hidden[batch], context[index])
                advance(f"{segmented.block_names[index]} forward")
        inputs.push(output)
        hidden = output
    return inputs, contexts


class Fitted:
    """Sequences that only go forward, segment by segment, under hooks that gather second moments.

    Of several processes each takes some of their batches, or none; sums do not show which.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        samples: Samples | None,
        workers: Workers,
        gathering: Gathering,
        advance: Advance,
    ) -> None:
        """`samples` are of all processes; None: there are none."""
        self._segmented, self._gathering, self._advance = segmented, gathering, advance
        self._samples, self._inputs, self._contexts = None, BlockInputs(), list[list[Context]]()
        if samples is not None:
            parts = samples.batches(segmented.together)
            own = workers.share(len(parts))
            self._samples = samples[parts[own.start].start : parts[own.stop - 1].stop] if own else None

    def go_forward(self, stop: int, scratch: Path | None = None) -> None:
        """Reach the blocks from `stop` down; `scratch` as for `sweep`."""
        if self._samples is not None:
            with self._gathering():
                self._inputs, self._contexts = forward_blocks(
                    self._segmented, self._samples, stop, self._advance, scratch
                )

    @torch.no_grad()
    def show(self, segment: int, watched: Sequence[str]) -> None:
        """Into a segment, the highest that has not been left, as far as some modules, if there are any."""
        if self._samples is None:
            return
        hidden = self._inputs[segment] if self._inputs else None
        for number, batch in enumerate(self._samples.batches(self._segmented.together) if watched else ()):
            own = None if hidden is None else hidden[batch]
            contexts = self._contexts[number] if self._contexts else []
            with self._gathering():
                self._segmented.show(segment, own, self._samples[batch], contexts, watched)
            self._advance(f"segment {segment} forward")
        if self._inputs:
            self._inputs.pop()
