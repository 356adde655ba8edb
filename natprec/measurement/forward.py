"""Ways through a model's blocks without gradients: what the way back begins with, and text that GPTQ is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from natprec.measurement.block_inputs import BlockInputs
from natprec.models.differentiation import Gathering
from natprec.models.segments import Context, StagedModel
from natprec.tasks import Samples
from natprec.utils.progress import Advance
from natprec.utils.workers import Workers


@torch.no_grad()
def forward_blocks(
    staged: StagedModel,
    samples: Samples,
    stop: int,
    advance: Advance = lambda stage: None,
    scratch: Path | None = None,
) -> tuple[BlockInputs, list[list[Context]]]:
    """Inputs of blocks 0 to `stop` (each (samples, positions, hidden)), and contexts per batch; none without blocks."""
    if not staged.blocks:
        return BlockInputs(), []
    parts, contexts = [], []
    with staged.hold(-1):
        for some in samples.split(staged.together):
            hidden, context = staged.prefix(some)
            parts.append(hidden)
            contexts.append(context)
            advance("prefix forward")
    hidden = torch.cat(parts)
    inputs = BlockInputs.suited(hidden, stop + 1, scratch)
    for index in range(stop):
        output = torch.empty_like(hidden)
        with staged.hold(index):
            for batch, context in zip(samples.batches(staged.together), contexts, strict=True):
                output[batch] = staged.block(index, hidden[batch], context[index])
                advance(f"{staged.block_names[index]} forward")
        inputs.push(output)
        hidden = output
    return inputs, contexts


class Fitted:
    """Sequences that only go forward, stage by stage, under hooks that gather second moments.

    Of several processes each takes some of their batches, or none; sums do not show which.
    """

    def __init__(
        self, staged: StagedModel, samples: Samples | None, workers: Workers, gathering: Gathering, advance: Advance
    ) -> None:
        """`samples` are of all processes; None: there are none."""
        self._staged, self._gathering, self._advance = staged, gathering, advance
        self._samples, self._inputs, self._contexts = None, BlockInputs(), list[list[Context]]()
        if samples is not None:
            parts = samples.batches(staged.together)
            own = workers.share(len(parts))
            self._samples = samples[parts[own.start].start : parts[own.stop - 1].stop] if own else None

    def go_forward(self, stop: int, scratch: Path | None = None) -> None:
        """Reach the blocks from `stop` down; `scratch` as for `sweep`."""
        if self._samples is not None:
            with self._gathering():
                self._inputs, self._contexts = forward_blocks(self._staged, self._samples, stop, self._advance, scratch)

    @torch.no_grad()
    def show(self, stage: int, watched: Sequence[str]) -> None:
        """Into a stage, the highest that has not been left, as far as some modules, if there are any."""
        if self._samples is None:
            return
        hidden = self._inputs[stage] if self._inputs else None
        for number, batch in enumerate(self._samples.batches(self._staged.together) if watched else ()):
            own = None if hidden is None else hidden[batch]
            contexts = self._contexts[number] if self._contexts else []
            with self._gathering():
                self._staged.show(stage, own, self._samples[batch], contexts, watched)
            self._advance(f"stage {stage} forward")
        if self._inputs:
            self._inputs.pop()
