"""What the sweep collects at a site, and how it becomes a curve over formats.

Forward (Shannon) flow, the diagonal Fisher form: with labels drawn from the model's own prediction
and g = d log p(y) / dw summed over one sequence,

    KL per token of format b  ≈  1/2 · sum_ij E[g_ij²] (Q_b(w_ij) - w_ij)² / tokens.

E[g²] is gathered per unit (a sequence, or a pool of sequences where memory is short) and contracted
with every format's squared errors once, as one matrix product.

Backward (Gibbs) flow: the squared error of rounding the gradient itself to each format, on a sample
of its rows, and the gradient's energy, to which it is relative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from natprec.formats import NumberFormat
from natprec.quantizers import squared_errors
from natprec.sites import Site

UNIT_MEMORY = 1 << 30
"""Bytes that the squared gradients of one site may take; beyond it sequences share a unit."""

MIN_UNITS = 4
GRADIENT_ROWS = 8
"""Rows of each sequence's gradient that are rounded for the backward flow."""

CONTRACT_ROWS = 1 << 18
"""Weights contracted at a time."""


@dataclass(frozen=True)
class Curve:
    """What was measured at one site.

    Attributes:
        forward: (parts, units, formats) KL in nats per token; a part is one kind of text.
        backward: (units, formats) E‖∇ - Q(∇)‖², in squared units of the gradient.
        energy: (units,) E‖∇‖², to which `backward` is relative; 0 means that nothing reached the site.
        kept: (parts, units) KL of storing the site in 16 bits, unquantized; 0 for a 16-bit model.
    """

    site: Site
    formats: tuple[NumberFormat, ...]
    forward: np.ndarray
    backward: np.ndarray
    energy: np.ndarray
    kept: np.ndarray

    @property
    def kl(self) -> np.ndarray:
        """(formats,) nats per token: the largest over the kinds of text, so that a promise on one holds on all."""
        return np.asarray(self.forward.mean(1).max(0))

    @property
    def kept_kl(self) -> float:
        """KL of storing the site unquantized, the largest over the kinds of text."""
        return float(self.kept.mean(1).max())

    def samples(self, fmt: NumberFormat | None) -> np.ndarray:
        """(units,) KL of a format (None: unquantized) on the kind of text where it is largest."""
        values = self.kept if fmt is None else self.forward[:, :, self.formats.index(fmt)]
        return np.asarray(values[values.mean(1).argmax()])


@dataclass
class Lookup:
    """Gradients at the rows of an embedding that one sequence touched."""

    rows: Tensor  # (touched,), int64
    counts: Tensor  # (touched,), occurrences
    own: Tensor  # (touched, columns): gradient through the lookup, squared
    joint: Tensor  # (touched, columns): own plus twice its product with the head's gradient


@dataclass
class WeightObserver:
    """Gathers squared gradients of one weight over all its uses and contracts them.

    Set `sequences` (indices of the batch's sequences) before each batch.
    """

    site: Site
    weight: Tensor
    formats: tuple[NumberFormat, ...]
    total: int
    parts: int
    scale_dtype: torch.dtype
    seed: int
    sequences: range = range(0)
    pending: dict[int, Tensor] = field(default_factory=dict)
    squares: Tensor | None = None
    head_values: Tensor | None = None
    head_rows: dict[int, Tensor] = field(default_factory=dict)
    lookups: dict[int, Lookup] = field(default_factory=dict)
    sampled: dict[int, Tensor] = field(default_factory=dict)
    energies: dict[int, float] = field(default_factory=dict)
    scales: dict[int, float] = field(default_factory=dict)
    ids: Tensor | None = None

    @property
    def units(self) -> int:
        """Pools of sequences, as many as memory allows, all of one size and of one kind of text."""
        affordable = max(MIN_UNITS, UNIT_MEMORY // (4 * self.weight.numel()))
        each = self.total // self.parts
        return self.parts * max(n for n in range(1, each + 1) if each % n == 0 and n * self.parts <= affordable)

    def attach(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch one use of the weight."""
        if isinstance(module, nn.Embedding):
            return [module.register_forward_hook(self._watch_lookup)]
        return [module.register_forward_hook(self._watch_product)]

    def _watch_product(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        inputs = args[0].detach()
        output.register_hook(lambda gradient: self.add_product(inputs, gradient))

    def _watch_lookup(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        ids = args[0]
        leaf = output.detach().requires_grad_()
        leaf.register_hook(lambda gradient: self.add_lookup(ids, gradient))
        return leaf

    def add_product(self, inputs: Tensor, gradient: Tensor) -> None:
        """Account for y = x Wᵀ: inputs (batch, time, columns), gradient (batch, time, rows)."""
        count = len(self.sequences)
        inputs = inputs.reshape(count, -1, inputs.shape[-1])
        gradient = gradient.reshape(count, inputs.shape[1], -1)
        if self.squares is None:
            self.squares = torch.zeros(self.units, *self.weight.shape, device=self.weight.device)
        for index, sequence in enumerate(self.sequences):
            if sequence in self.pending:
                self.pending[sequence].addmm_(gradient[index].T, inputs[index])
            elif self.units == self.total:
                self.pending[sequence] = torch.mm(gradient[index].T, inputs[index], out=self.squares[sequence])
            else:
                self.pending[sequence] = torch.mm(gradient[index].T, inputs[index])

    def flush(self) -> None:
        """Square the gradients of the batch's sequences, now that all uses have added to them."""
        for sequence, gradient in self.pending.items():
            self._sample_rows(sequence, gradient)
            if self.ids is not None:
                self.head_rows[sequence] = gradient[self.ids[sequence]].cpu()
            assert self.squares is not None
            if self.units == self.total:
                gradient.square_()
            else:
                self.squares[sequence * self.units // self.total].addcmul_(gradient, gradient)
        self.pending.clear()

    def add_lookup(self, ids: Tensor, gradient: Tensor) -> None:
        """Account for an embedding lookup: ids (batch, time), gradient (batch, time, columns)."""
        for index, sequence in enumerate(self.sequences):
            rows, inverse, counts = ids[index].unique(return_inverse=True, return_counts=True)
            own = gradient.new_zeros(len(rows), gradient.shape[-1], dtype=torch.float32)
            own.index_add_(0, inverse, gradient[index].float())
            joint = own.square()
            if sequence in self.pending:  # both uses in one stage: the product's gradient is not squared yet
                joint = joint + 2 * own * self.pending[sequence][rows]
            elif sequence in self.head_rows:
                first = torch.empty_like(rows)
                first[inverse] = torch.arange(len(inverse), device=inverse.device)
                joint = joint + 2 * own * self.head_rows[sequence].to(own.device)[first]
            else:
                self._sample_rows(sequence, own)
            self.lookups[sequence] = Lookup(rows, counts, own.square(), joint)

    def _sample_rows(self, sequence: int, gradient: Tensor) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + sequence)
        chosen = torch.randperm(len(gradient), generator=generator)[:GRADIENT_ROWS]
        self.sampled[sequence] = gradient[chosen.to(gradient.device)].cpu()
        self.scales[sequence] = len(gradient) / len(chosen)
        self.energies[sequence] = float(torch.linalg.vector_norm(gradient)) ** 2

    def finish_product(self, tokens: int) -> None:
        """Contract the squares of the matrix product with the errors of every format."""
        if self.squares is not None:
            pooled = self.total // self.units
            self.head_values = _contract(self.squares, self.weight, self.formats, self.scale_dtype)
            self.head_values /= 2 * tokens * pooled
            self.squares = None

    def curve(self, tokens: int) -> Curve:
        """The site's curve; `tokens` is the length of a sequence."""
        self.finish_product(tokens)
        units = self.units
        columns = len(self.formats) + 1  # the last: stored unquantized
        forward = torch.zeros(units, columns, dtype=torch.float64)
        if self.head_values is not None:
            forward += self.head_values
        if self.lookups:
            sparse = lookup_values(self.lookups, self.weight, self.formats, self.scale_dtype, tokens)
            forward += sparse.view(units, -1, columns).mean(1)
        backward = torch.zeros(self.total, len(self.formats), dtype=torch.float64)
        for sequence, rows in self.sampled.items():
            errors = squared_errors(rows, self.formats, torch.float32).double().sum(1)
            backward[sequence] = errors[:-1] * self.scales[sequence]
        energy = torch.tensor([self.energies.get(s, 0.0) for s in range(self.total)], dtype=torch.float64)
        return Curve(
            self.site,
            self.formats,
            forward[:, :-1].reshape(self.parts, -1, columns - 1).numpy(),
            backward.view(units, -1, len(self.formats)).mean(1).numpy(),
            energy.view(units, -1).mean(1).numpy(),
            forward[:, -1].reshape(self.parts, -1).numpy(),
        )


def lookup_values(
    lookups: dict[int, Lookup],
    weight: Tensor,
    formats: Sequence[NumberFormat],
    scale_dtype: torch.dtype,
    tokens: int,
) -> Tensor:
    """KL per token through an embedding's lookups: (sequences, formats + 1), float64.

    Rows that the text never touched are unknown, not free. A share m of the positions of other text
    holds unseen tokens (Good 1953: m = tokens seen once / tokens); each costs what a token seen once
    cost here, with the rounding errors of the unseen rows. Seen rows keep the share 1 - m. Where
    no token was seen once, one position counts as if, at the cost of an occurrence of the rarest.
    """
    counts = torch.zeros(weight.shape[0], dtype=torch.int64, device=weight.device)
    for lookup in lookups.values():
        counts[lookup.rows] += lookup.counts
    seen = counts.nonzero().squeeze(1)
    position = torch.full_like(counts, -1)
    position[seen] = torch.arange(len(seen), device=weight.device)
    columns = weight.shape[1]
    errors = squared_errors(weight[seen], formats, scale_dtype).view(-1, len(seen), columns)
    values = torch.zeros(len(lookups), len(errors), dtype=torch.float64)
    single = torch.zeros(columns, device=weight.device)
    rarest = counts[seen].min()  # 1, unless the text repeats itself throughout
    for index, lookup in enumerate(lookups.values()):
        at = position[lookup.rows]
        values[index] = torch.einsum("rc,krc->k", lookup.joint, errors[:, at]).cpu().double() / (2 * tokens)
        single += lookup.own[counts[lookup.rows] == rarest].sum(0)
    singles = int((counts == rarest).sum())
    unseen = (counts == 0).nonzero().squeeze(1)
    if len(unseen) == 0:
        return values
    mass = (singles if rarest == 1 else 1) / int(counts.sum())
    typical = torch.zeros(len(errors), columns, device=weight.device)
    for rows in unseen.split(max(1, CONTRACT_ROWS // columns)):
        chunk = squared_errors(weight[rows], formats, scale_dtype)
        typical += chunk.view(-1, len(rows), columns).sum(1)
    per_occurrence = (typical / len(unseen)) @ (single / (singles * rarest)) / 2
    return (1 - mass) * values + mass * per_occurrence.cpu().double()


def _contract(squares: Tensor, weight: Tensor, formats: Sequence[NumberFormat], scale_dtype: torch.dtype) -> Tensor:
    """Σ_ij squares[u, i, j] · error_f[i, j]²: (units, formats + 1), float64."""
    values = torch.zeros(len(squares), len(formats) + 1, dtype=torch.float64)
    step = max(1, CONTRACT_ROWS // weight.shape[1])
    for start in range(0, len(weight), step):
        errors = squared_errors(weight[start : start + step], formats, scale_dtype)
        values += (squares[:, start : start + step].reshape(len(squares), -1) @ errors.T).cpu().double()
    return values
