"""Learned rounding of a block (SignRound: Cheng et al. 2023, arXiv:2309.05516; AdaRound's aim: Nagel et al. 2020,
arXiv:2004.10568).

GPTQ chooses codes layer by layer. Here all codes of a block move together, so that the block puts out what the
original's block does, though its input comes from the rounded prefix. Each weight has a position among the codebook's
values that starts where the weight lay, within the code that GPTQ chose; its code is the nearest. Positions step
against the sign of the loss's gradient, scales by Adam, both less and less. If that does not lower the loss, GPTQ's
codes are kept.

Several processes take each step together: each runs its part of the step's batch, and moves the weights that it
rounded, for which it receives the gradients of all. Sums in another order flip some codes a step earlier, and learning
goes another way: what comes of it is as good, and not the same (LOG.md, 2026-11-30).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from natprec.models.hidden_states import HiddenStates
from natprec.models.layers import Layer, known_layer, put_codes
from natprec.models.segments import SegmentedModel
from natprec.quantizers import QuantizedTensor
from natprec.rounding.gptq import GPTQ
from natprec.rounding.moments import Gradients
from natprec.rounding.positions import Positions
from natprec.rounding.rounder import Pace, Run
from natprec.rounding.together import codes_of_all, gradients_at_owners, owners, share_weights
from natprec.tasks import Samples
from natprec.utils.progress import Advance
from natprec.utils.workers import Workers

STEPS = 100
"""Of gradient descent in each block, each on one batch of the text."""

PATHS = (0.25, 0.05)
"""How far a position moves, in codes, if all steps go one way; the second is tried where the first does not help."""

RATE = 1e-3
"""Of Adam, in units of each scale; as the steps of positions it falls to 0."""

DAMPING = 1.0
"""What each token counts at least, in means of all."""

LEARNING_FORWARDS = 3.0
"""Of each token of each step: forward, backward (2)."""

MOVING = 1e-8
"""Seconds in which one position steps, with its code and value."""


class Learner:
    """Improves the codes of one block after another.

    The original model goes along: its hidden states take as much memory as those of the rounded prefix.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        states: HiddenStates,
        gradients: Gradients,
        storage_dtype: torch.dtype,
        seed: int = 0,
        advance: Advance = lambda step: None,
    ) -> None:
        """Begin before the prefix.

        Args:
            states: of the rounded model.
            gradients: of the original's distortion, which say what each token counts.
            seed: of the order of batches.
        """
        self._segmented, self._states, self._original = segmented, states, states.twin()
        self._dtype, self._seed, self._advance = storage_dtype, seed, advance
        self._gradients = gradients
        self._importance: list[Tensor] = []

    def watch(self, segment: int) -> None:
        """Let the original through a segment, whose weights are still its own."""
        if segment < len(self._segmented.blocks):
            with self._segmented.gathering():
                self._original.through(segment, self._advance)
        gradient = self._gradients.pop() if 0 <= segment < len(self._segmented.blocks) else None
        if gradient is not None:
            importance = token_importance(gradient, self._segmented.workers)
            self._importance = [importance[batch] for batch in self._states.share.batches]

    def improve(
        self,
        segment: int,
        codes: dict[str, QuantizedTensor],
        unrounded: Mapping[str, Tensor],
        owner: Mapping[str, int],
    ) -> dict[str, QuantizedTensor]:
        """Learn the codes of a block that the states have come to; its weights are those of the result afterwards.

        Args:
            codes: site → where learning starts; the weights are these.
            unrounded: site → what was rounded, (rows, columns).
            owner: site → the process that moves it.
        """
        if not codes or not 0 <= segment < len(self._segmented.blocks):
            return codes
        layers = {name: known_layer(self._segmented.model.get_submodule(name)) for name in codes}
        before = self._loss(segment)
        for path, advance in zip(PATHS, (self._advance, lambda _: None), strict=True):
            found = self._learned(segment, codes, unrounded, layers, owner, path, advance)
            if self._loss(segment) < before:
                return found
            put_codes(layers, codes)
        return codes

    def _learned(
        self,
        segment: int,
        codes: Mapping[str, QuantizedTensor],
        unrounded: Mapping[str, Tensor],
        layers: Mapping[str, Layer],
        owner: Mapping[str, int],
        path: float,
        advance: Advance,
    ) -> dict[str, QuantizedTensor]:
        """After `STEPS` steps from `codes`, better or not; the weights are those of the result."""
        draw, share, workers = torch.Generator().manual_seed(self._seed), self._states.share, self._segmented.workers
        own = [name for name in layers if owner[name] == workers.rank]
        descents = {name: _Descent(Positions(unrounded[name], codes[name], self._dtype)) for name in own}
        now, order = {name: codes[name] for name in own}, list[int]()
        with _in_dtype(layers.values(), self._segmented.products):
            for step in range(STEPS):
                order = order or torch.randperm(len(share.whole), generator=draw).tolist()
                gradients = self._descend(segment, order.pop(), layers, owner)
                left = 1 - step / STEPS
                for name, gradient in gradients.items():
                    now[name] = descents[name].step(gradient, now[name], 2 * path / STEPS * left, RATE * left)
                    layers[name].put(now[name].dequantize())
                share_weights(workers, layers, owner, self._segmented.products)
                advance(f"{self._segmented.block_names[segment]} step {step + 1}")
        formats = {name: codes[name].format for name in layers}
        found = codes_of_all(workers, now, formats, next(iter(layers.values())).weight.device)
        put_codes(layers, found)
        return found

    @torch.no_grad()
    def _loss(self, segment: int) -> float:
        """Mean over all of the text."""
        share = self._states.share
        losses = torch.zeros(len(share.whole), dtype=torch.float64)
        for place, number in enumerate(share.own):
            losses[number] = float(self._batch_loss(segment, place))
        (losses,) = share.workers.all_sum(losses)
        return sum(losses.tolist()) / len(losses)

    def _batch_loss(self, segment: int, place: int) -> Tensor:
        """Mean squared distance of the block's output from the original's, by what each token counts.

        Of a batch of which this process has a part: what this part adds to it.
        """
        with self._segmented.gathering():
            output = self._states.next(segment, place)
        distances = (output.float() - self._original.state(place)).square() * self._importance[place]
        return distances.mean() * self._states.share.fractions[place]

    @torch.enable_grad()
    def _descend(
        self, segment: int, number: int, layers: Mapping[str, Layer], owner: Mapping[str, int]
    ) -> dict[str, Tensor]:
        """Name → gradient of a batch's loss, of the weights that it depends on and that this process moves."""
        share = self._states.share
        for layer in layers.values():
            layer.weight.requires_grad_(True)
        try:
            if number in share.own:
                self._batch_loss(segment, list(share.own).index(number)).backward()
            return gradients_at_owners(share.workers, layers, owner, self._segmented.products)
        finally:
            for layer in layers.values():
                layer.weight.grad = None
                layer.weight.requires_grad_(False)


@contextlib.contextmanager
def _in_dtype(layers: Iterable[Layer], dtype: torch.dtype) -> Iterator[None]:
    """Within the block weights are of the dtype that products round them to, in which they and gradients travel.

    Else each forward would cast all of them, each backward pass their gradients, and each process those of others too.
    """
    weights = [layer.weight for layer in layers]
    dtypes = [weight.dtype for weight in weights]
    for weight in weights:
        weight.data = weight.data.to(dtype)
    try:
        yield
    finally:
        for weight, before in zip(weights, dtypes, strict=True):
            weight.data = weight.data.to(before)


def token_importance(gradient: Tensor, workers: Workers) -> Tensor:
    """What a squared error counts at each token: (sequences, time, 1), around 1.

    Args:
        gradient: of the distortion, at a block's output: (sequences, time, hidden).
        workers: of whose sequences 1 is the mean.
    """
    power = gradient.float().square().sum(-1, keepdim=True)
    mean = power.mean()
    if workers.size > 1:
        own = torch.tensor([float(mean) * power.numel(), power.numel()], dtype=torch.float64)
        total, count = workers.all_sum(own)[0].tolist()
        mean = mean.new_tensor(total / count)
    return (power / mean + DAMPING) / (1 + DAMPING)


class _Descent:
    """Of one weight: its positions step against the sign of a gradient, its scales by Adam."""

    def __init__(self, positions: Positions) -> None:
        self._positions = positions
        self._optimizer = torch.optim.Adam([positions.moves], lr=RATE)

    def step(self, gradient: Tensor, now: QuantizedTensor, step: float, rate: float) -> QuantizedTensor:
        """One step; returns the codes and scales after it.

        Args:
            gradient: (rows, columns), of the loss by the value of each weight; of any dtype.
            now: the codes and scales where it was taken.
            step: of each position, in codes; `rate`: Adam's, of the scales.
        """
        slope, self._positions.moves.grad = self._positions.slopes(gradient.float(), now)
        self._optimizer.param_groups[0]["lr"] = rate
        self._optimizer.step()
        self._positions.at.sub_(slope.sign(), alpha=step)
        self._positions.clamp_()
        return self._positions.rounded()


class Learned(GPTQ):
    """GPTQ's codes, then learned ones; takes gradients first, then the original along, and judges each block twice."""

    forwards, divides = 9.0, True

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        assert run.text is not None
        assert run.gradients is not None
        self._learner = Learner(run.segmented, run.text, run.gradients, run.work.dtype, run.seed, run.advance)

    def watch(self, segment: int) -> None:
        """See `Rounder.watch`."""
        self._learner.watch(segment)

    def members(self, segment: int) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
        """See `ByMoments.members`."""
        codes, unrounded = super().members(segment)
        members = self.run.work.members(segment)
        rank_of = owners(self.run.segmented, members)
        owner = {site.name: rank_of[site.fused_group] for site in members}
        return self._learner.improve(segment, codes, unrounded, owner), unrounded

    @classmethod
    def more_batches(cls, segmented: SegmentedModel, samples: Samples) -> int:
        """See `Rounder.more_batches`."""
        return len(segmented.blocks) * (len(samples.batches()) + STEPS)

    @classmethod
    def seconds(cls, pace: Pace) -> float:
        """See `Rounder.seconds`; each step that learns runs a batch, and moves every weight of a block."""
        return super().seconds(pace) + STEPS * (pace.batch * pace.gathering * LEARNING_FORWARDS + pace.moved * MOVING)


ROUNDER = Learned
