"""Collects an activation's statistics during the sweep, and turns them into a curve over formats.

With s what the distortion draws (see `natprec.distortions`), g_t = d s / dx_t at a token's activation x_t, its rounding
error δ_t = Q_b(x_t) - x_t, and means ḡ, δ̄ over the T tokens of a sequence,

    KL per token of format b  ≈  ½ E[(Σ_t g_t · δ_t)²] / T  ≈  ½ E[(T ḡ · δ̄)² + Σ_t ((g_t - ḡ) · (δ_t - δ̄))²] / T.

Both are directional within a token, whose errors are not independent: at 3 and 4 bits most of its values round to zero
together. Of different tokens what errors have in common adds up (a mean over tokens keeps nothing else), and the
rest is taken as independent, which one draw per token needs to be precise.

Backward flow: the squared error of rounding g_t itself, on a few tokens per sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natprec.errors import ModelError
from natprec.formats import Format, PerHead
from natprec.measurement.curves import Curve
from natprec.measurement.sharding import Sharding
from natprec.models.attention import AttentionHook
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site
from natprec.quantizers.activations import fixed_scale, round_activations
from natprec.utils.hooks import attached, of_its_own
from natprec.utils.seeds import derived

SITE_MEMORY = 256 << 20
"""Bytes that activations and gradients of one site may take; beyond it some of each sequence's tokens are left out."""

GRADIENT_TOKENS = 8
"""Tokens of each sequence whose gradient is rounded for the backward flow."""


@dataclass
class ActivationObserver:
    """Gathers an activation and its gradient, token by token, while its segment runs.

    Set `sequences` (indices of the batch's sequences) before each batch.

    Attributes:
        sharding: of the sweep's sequences, in `parts` kinds of text; all processes have the same curve in the end.
        values: sequence → of each tensor that the site was in it, one unless a module is called again, its
            (tokens, features).
        gradients: the same by the tensor's number, of those that gradients came to.
        tokens: of a tensor, for each sequence, before any were left out.
        seen: the tensors of the batch.
    """

    site: Site
    formats: tuple[Format, ...]
    sharding: Sharding
    parts: int
    seed: int
    sequences: range = range(0)
    values: dict[int, list[Tensor]] = field(default_factory=dict)
    gradients: dict[int, dict[int, Tensor]] = field(default_factory=dict)
    tokens: int = 0
    seen: list[Tensor] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Sequences of the sweep, in all processes."""
        return self.sharding.total

    def attach(self, module: nn.Module) -> list[Any]:
        """Watch one use of the activation."""
        if self.site.role == "cache":
            return [AttentionHook(module, self._watch_states)]
        return [module.register_forward_pre_hook(self._watch_input)]

    def _watch_input(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._watched(args[0], lambda tensor: tensor), *args[1:])

    def _watch_states(self, _: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        if self.site.kind == "key":
            return self._watched(key, _by_token), value
        return key, self._watched(value, _by_token)

    def _watched(self, tensor: Tensor, by_token: Callable[[Tensor], Tensor]) -> Tensor:
        own = of_its_own(tensor)
        if self.sequences.start not in self.values:
            self.seen.clear()
        number = next((number for number, known in enumerate(self.seen) if known is tensor), len(self.seen))
        if number == len(self.seen):  # another use of the same tensor has not kept it yet
            self.seen.append(tensor)
            for sequence, kept in self._kept(by_token(tensor.detach())).items():
                if not torch.isfinite(kept).all():
                    raise ModelError(
                        f"activation {self.site.name!r} is NaN or Inf in calibration sequence {sequence}, of the batch "
                        f"{self.sequences.start} to {self.sequences.stop - 1}; leave that text out, or mend the model"
                    )
                self.values.setdefault(sequence, []).append(kept)
        own.register_hook(lambda gradient: self._add(number, self._kept(by_token(gradient))))
        return own

    def _kept(self, tensor: Tensor) -> dict[int, Tensor]:
        """Sequence → (tokens, features): all of its tokens, or as many as memory allows; every use keeps the same."""
        rows = tensor.reshape(len(self.sequences), -1, tensor.shape[-1])
        self.tokens = rows.shape[1]
        affordable = max(1, SITE_MEMORY // (8 * rows.shape[-1] * self.total))
        if affordable >= self.tokens:
            return {sequence: row.clone() for sequence, row in zip(self.sequences, rows, strict=True)}
        return {
            sequence: row[self._some(sequence, self.tokens, affordable).to(row.device)]
            for sequence, row in zip(self.sequences, rows, strict=True)
        }

    def _some(self, sequence: int, among: int, count: int) -> Tensor:
        """Indices of `count` tokens, drawn anew for each sequence."""
        draw = torch.Generator().manual_seed(derived(self.seed, sequence))
        return torch.randperm(among, generator=draw)[:count]

    def _add(self, number: int, gradients: dict[int, Tensor]) -> None:
        """Gradients of one use of a tensor; those of all its uses add up."""
        for sequence, gradient in gradients.items():
            own = self.gradients.setdefault(sequence, {})
            own[number] = own[number].add_(gradient) if number in own else gradient

    def curve(self, terms: int, columns: Tensor | None = None) -> Curve:
        """The site's curve; `terms` is how many terms of a sequence its distortion is averaged over.

        Args:
            columns: (features,), by which the fused group's columns are multiplied, and this input divided, before
                GPTQ.
        """
        shape = self.total, len(self.formats)
        forward, scaled, backward = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        energy = torch.zeros(self.total, dtype=torch.float64)
        largest = self._largest(1.0)
        after = largest if columns is None else self._largest(columns)
        heads = any(fmt.scaling.granularity == PerHead() for fmt in self.formats)
        for sequence, by_tensor in self.gradients.items():
            several = self.values[sequence]
            tokens, standing = self.tokens * len(several), self.tokens / len(several[0])
            values = torch.cat(several)
            gradient = torch.cat([by_tensor.get(number, torch.zeros_like(v)) for number, v in enumerate(several)])
            energy[sequence] = gradient.square().sum().double() * standing
            few = gradient[self._some(sequence, len(gradient), GRADIENT_TOKENS).to(gradient.device)]
            for index, fmt in enumerate(self.formats):
                forward[sequence, index] = directional(values, gradient, fmt, self._reach(fmt, largest), standing)
                scale = fixed_scale(fmt, self._reach(fmt, few.abs().amax(0))) if fmt.fixed else None
                lost = (round_activations(few, fmt, scale) - few).square().sum().double()
                backward[sequence, index] = lost * tokens / len(few)
                if columns is not None:
                    inner, outer = values / columns, gradient * columns
                    scaled[sequence, index] = directional(inner, outer, fmt, self._reach(fmt, after), standing)
        forward, scaled, backward, energy = self.sharding.workers.all_sum(forward, scaled, backward, energy)
        plain = forward.sum(0)
        left = torch.where(plain > 0, scaled.sum(0) / plain, torch.ones_like(plain))
        self.values.clear()
        self.gradients.clear()
        self.seen.clear()
        return Curve(
            self.site,
            self.formats,
            (forward / (2 * terms)).reshape(self.parts, -1, len(self.formats)).numpy(),
            backward.numpy(),
            energy.numpy(),
            np.ones(len(self.formats)) if columns is None else left.numpy(),
            np.zeros((self.parts, self.total // self.parts)),
            np.ones(len(self.formats)),
            scaled=columns is not None,
            largest=(float(largest.amax()), float(after.amax())),
            by_head=(self._of_heads(largest), self._of_heads(after)) if heads else None,
        )

    def _reach(self, fmt: Format, largest: Tensor) -> Tensor:
        """(features,): the largest magnitude of each, or that of the head that it is of, whose scale it has."""
        if fmt.scaling.granularity != PerHead():
            return largest
        return largest.view(self.site.shape).amax(1, keepdim=True).expand(self.site.shape).flatten()

    def _of_heads(self, largest: Tensor) -> tuple[float, ...]:
        return tuple(largest.view(self.site.shape).amax(1).tolist())

    def _largest(self, columns: Tensor | float) -> Tensor:
        """(features,): the largest magnitude of each over all text, of values divided by `columns`."""
        found = [values.abs().amax(0) for several in self.values.values() for values in several]
        own = torch.stack(found).amax(0) if found else torch.full((self.site.elements,), -1.0)
        largest = self.sharding.workers.all_max(own)
        return torch.where(largest >= 0, largest, 1.0) / columns


def directional(
    values: Tensor, gradient: Tensor, fmt: Format, largest: Tensor | None = None, standing: float = 1.0
) -> Tensor:
    """(Σ_t g_t · δ_t)² of a sequence, float64: T ḡ · δ̄ of the means, squared, and the deviations token by token.

    Args:
        values, gradient: (tokens, features), each standing for `standing` tokens.
    """
    scale = fixed_scale(fmt, largest) if fmt.fixed and largest is not None else None
    error = round_activations(values, fmt, scale).sub_(values)
    common, slope = error.mean(0), gradient.mean(0)
    together = (slope @ common).double() * len(error) * standing
    apart = torch.linalg.vecdot(error.sub_(common), gradient - slope).double()
    return together.square() + apart.square().sum() * standing


@contextlib.contextmanager
def watching(segmented: SegmentedModel, observers: Mapping[str, ActivationObserver], segment: int) -> Iterator[None]:
    """Hooks of the observers whose activation is computed in a segment."""
    handles = [
        handle
        for observer in observers.values()
        if observer.site.segment == segment
        for use in observer.site.uses
        for handle in observer.attach(segmented.model.get_submodule(use))
    ]
    with attached(handles):
        yield


def _by_token(states: Tensor) -> Tensor:
    """(batch, heads, time, size) to (batch, time, heads · size)."""
    return states.transpose(1, 2).flatten(2)
