"""Learned rounding of a block (SignRound: Cheng et al. 2023, arXiv:2309.05516; AdaRound's aim: Nagel et al. 2020,
arXiv:2004.10568).

GPTQ chooses codes layer by layer. Here all codes of a block move together, so that the block puts out what the
original's block does, though its input comes from the rounded prefix. Each weight has a position, in codes, that starts
where the weight lay, within the code that GPTQ chose; its code is the nearest integer. Positions step against the sign
of the loss's gradient, scales by Adam, both less and less. If that does not lower the loss, GPTQ's codes are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from natprec.blocks import StagedModel
from natprec.measurement.sweep import batches
from natprec.passage import Passage
from natprec.progress import Advance
from natprec.quantizers import QuantizedTensor

STEPS = 100
"""Of gradient descent in each block, each on one batch of the text."""

PATH = 0.25
"""How far a position moves, in codes, if all its steps go one way."""

RATE = 1e-3
"""Of Adam, in units of each scale; as the steps of positions it falls to 0."""

WITHIN = 0.49
"""How far from its code a position may start."""


class Learner:
    """Improves the codes of one block after another.

    The original model goes along: its hidden states take as much memory as those of the rounded prefix.
    """

    def __init__(
        self,
        staged: StagedModel,
        passage: Passage,
        storage_dtype: torch.dtype,
        seed: int = 0,
        advance: Advance = lambda stage: None,
    ) -> None:
        """Begin before the prefix.

        Args:
            passage: of the rounded model.
            seed: of the order of batches.
        """
        self._staged, self._passage, self._original = staged, passage, passage.twin()
        self._dtype, self._seed, self._advance = storage_dtype, seed, advance

    def watch(self, stage: int) -> None:
        """Let the original through a stage, whose weights are still its own."""
        if stage < len(self._staged.blocks):
            with self._staged.gathering():
                self._original.through(stage, self._advance)

    def improve(
        self, stage: int, codes: dict[str, QuantizedTensor], unrounded: Mapping[str, Tensor]
    ) -> dict[str, QuantizedTensor]:
        """Learn the codes of a block that the passage has come to; its weights are those of the result afterwards.

        Args:
            codes: site → where learning starts; the weights are these.
            unrounded: site → what was rounded, (rows, columns).
        """
        if not codes or not 0 <= stage < len(self._staged.blocks):
            return codes
        weights = {name: self._parameter(name) for name in codes}
        draw = torch.Generator().manual_seed(self._seed)
        everything = range(len(batches(*self._passage.ids.shape)))
        positions = {name: _Position(unrounded[name], codes[name], self._dtype) for name in weights}
        before = self._loss(stage, everything)
        now, order = codes.copy(), list[int]()
        for step in range(STEPS):
            order = order or torch.randperm(len(everything), generator=draw).tolist()
            gradients = self._gradients(stage, order.pop(), weights)
            left = 1 - step / STEPS
            for name, gradient in gradients.items():
                now[name] = positions[name].move(gradient, now[name], left)
                weights[name].data = now[name].dequantize()
            self._advance(f"{self._staged.block_names[stage]} step {step + 1}")
        if self._loss(stage, everything) < before:
            return now
        for name, parameter in weights.items():
            parameter.data = codes[name].dequantize()
        return codes

    def _parameter(self, name: str) -> nn.Parameter:
        return self._staged.model.get_submodule(name).weight  # type: ignore[return-value]

    @torch.no_grad()
    def _loss(self, stage: int, numbers: Sequence[int]) -> float:
        """Mean over some batches."""
        return sum(float(self._batch_loss(stage, number)) for number in numbers) / len(numbers)

    def _batch_loss(self, stage: int, number: int) -> Tensor:
        """Mean squared distance of the block's output from the original's."""
        with self._staged.gathering():
            output = self._passage.next(stage, number)
        return (output.float() - self._original.state(number)).square().mean()

    @torch.enable_grad()
    def _gradients(self, stage: int, number: int, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Name → gradient of a batch's loss, of the weights that it depends on."""
        for parameter in weights.values():
            parameter.requires_grad_(True)
        try:
            self._batch_loss(stage, number).backward()
            return {name: each.grad for name, each in weights.items() if each.grad is not None}
        finally:
            for parameter in weights.values():
                parameter.grad = None
                parameter.requires_grad_(False)


def learning_batches(staged: StagedModel, sequences: int, length: int) -> int:
    """At most how many times a `Learner` calls `advance`."""
    return len(staged.blocks) * (len(batches(sequences, length)) + STEPS)


class _Position:
    """Of one weight: where its codes are between integers, and what its scales are multiplied by."""

    def __init__(self, weight: Tensor, start: QuantizedTensor, dtype: torch.dtype) -> None:
        """Where a weight (rows, columns) lies on a grid, but within the codes that were chosen.

        Args:
            dtype: of stored scales.
        """
        self._start, self._dtype = start, dtype
        at = torch.maximum(torch.minimum(start.located(weight), start.codes + WITHIN), start.codes - WITHIN)
        self._at = at.view(*start.scale.shape, -1)
        self._uphill = start.scale.sign().unsqueeze(-1)  # where values grow with codes
        self._moves = torch.zeros_like(start.scale, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._moves], lr=RATE)

    def move(self, gradient: Tensor, now: QuantizedTensor, left: float) -> QuantizedTensor:
        """One step; returns the codes and scales after it.

        Args:
            gradient: (rows, columns), of the loss by the value of each weight.
            now: the codes and scales where it was taken.
            left: of the first step's length, which part.
        """
        self._moves.grad = now.scale_slope(gradient)
        self._optimizer.param_groups[0]["lr"] = RATE * left
        self._optimizer.step()
        low, high = self._start.format.code_range
        steps = gradient.sign().view(self._at.shape).mul_(self._uphill)
        self._at.sub_(steps, alpha=2 * PATH / STEPS * left).clamp_(low - WITHIN, high + WITHIN)
        codes = self._at.round().to(torch.int8).view(gradient.shape)
        return replace(self._start, codes=codes).scaled(1 + self._moves.detach(), self._dtype)
