"""Collects a weight's statistics during the sweep, and turns them into a curve over formats.

Forward (Shannon) flow, the diagonal Fisher form: with g = d s / dw of one sequence, s the scalar that the
distortion draws, whose gradient has the covariance of d log p(y) for labels y drawn from the model's own prediction,

    KL per token of format b  ≈  1/2 · sum_ij E[g_ij²] (Q_b(w_ij) - w_ij)² / tokens.

Other distortions draw another scalar than log p(y) and have other terms than tokens: see `natprec.distortions`.
Gradients are gathered per pool (one sequence; the squares of several where memory is short) and contracted
with every format's errors once, as one matrix product: see `contraction`, also for what becomes of the products of
different weights, which the diagonal form leaves out. What GPTQ will leave of that: see `compensation`.

Backward (Gibbs) flow: the squared error of rounding the gradient itself to each format, on a sample of its rows
(`row_samples`), and the gradient's energy, to which it is relative.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from natprec.formats import Format
from natprec.measurement.curves import Curve
from natprec.measurement.draw_rows import draw_rows
from natprec.measurement.fisher import Lookup, Product, Sums, lookup_values, summed
from natprec.measurement.gptq_ratio import Compensation
from natprec.measurement.gradient_rows import RowSamples
from natprec.measurement.lookups import LookupCompensation, own_lookups
from natprec.measurement.pools import pools
from natprec.measurement.sharding import Sharding
from natprec.measurement.weight_gradients import add_products
from natprec.models.layers import Layer, known_layer
from natprec.models.routing import MIN_TOKENS
from natprec.models.weight_sites import Site
from natprec.utils.hooks import differentiable, watch_gradient


@dataclass
class WeightObserver:
    """Gathers the gradients of one weight over all its uses and contracts them.

    `compensation` is given where GPTQ may round the site; `peers` weights share the memory for gradients. `drawn` has
    the rows of each own sequence's gradient that are kept, (own sequences, rows), where each is drawn from all rows.
    Set `sequences` (indices of the batch's sequences) before each batch. Observers of one sweep share
    `spare`: the buffers of finished sites, which cost more to allocate again than to fill. Of several processes each
    observes the sequences that `sharding` gives it; all of them have the same curve in the end.
    """

    site: Site
    layer: Layer
    formats: tuple[Format, ...]
    sharding: Sharding
    parts: int
    scale_dtype: torch.dtype
    seed: int
    spare: dict[torch.Size, list[Tensor]]
    sequences: range = range(0)
    pending: Tensor | None = None
    gathered: Tensor | None = None
    filled: set[int] = field(default_factory=set)
    head_values: Tensor | None = None
    head_energy: Tensor | None = None
    alignment: Tensor | None = None
    head_rows: dict[int, Tensor] = field(default_factory=dict)
    lookups: dict[int, Lookup] = field(default_factory=dict)
    looked_up: bool = False
    samples: RowSamples = field(default_factory=RowSamples)
    drawn: Tensor | None = None
    ids: Tensor | None = None
    compensation: Compensation | None = None
    peers: int = 1
    tokens: int = 0
    widened: bool = False
    called: bool = False
    hidden: bool = False

    @property
    def weight(self) -> Tensor:
        """(rows, columns), as it is now."""
        return self.layer.matrix

    @property
    def unknown(self) -> bool:
        """Whether nothing can be said of it: no token reached it, or what happens to it no hook sees (`hidden`)."""
        return self.hidden or not (self.called or self.site.experts)

    @property
    def few(self) -> bool:
        """Whether too few tokens were routed to it to measure it by itself; known when all processes are complete."""
        return self.site.experts != "" and self.tokens < MIN_TOKENS

    @property
    def wire(self) -> torch.dtype:
        """In which a sequence's gradient loses nothing on its way; known when all processes are complete.

        A product in bfloat16 is a sum in float32, rounded; the sum of two of them is exact in float32 alone.
        """
        return torch.float32 if self.widened else torch.bfloat16

    @property
    def total(self) -> int:
        """Sequences of the sweep, in all processes."""
        return self.sharding.total

    @cached_property
    def pool_count(self) -> int:
        """Pools of sequences: see `pools`."""
        return pools(self.total, self.parts, self.site.elements * self.peers)

    @property
    def buffer(self) -> torch.Size:
        """Shape of `gathered`, and of what can be reused for it: (own pools, rows, columns)."""
        return torch.Size((len(self.sharding.pool(self.pool_count)), *self.site.shape))

    def _pool(self, sequence: int) -> int:
        """Where in `gathered` a sequence is."""
        return sequence * self.pool_count // self.total - self.sharding.pool(self.pool_count).start

    def attach(self, module: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """Watch one use of the weight."""
        if known_layer(module).kind.looks_up:
            return [module.register_forward_hook(self._watch_lookup)]
        return [module.register_forward_hook(self._watch_product)]

    def _watch_product(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        inputs, self.called = args[0].detach(), True
        if torch.is_grad_enabled():
            if not output.requires_grad:  # its inputs are the same in all segments, like those of relative positions
                output = differentiable(output)
            watch_gradient(output, lambda gradient: self.add_product(inputs, gradient))
        return output

    def _watch_lookup(self, _: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.called = True
        ids, output = own_lookups(args[0], output, len(self.sequences))
        output.register_hook(lambda gradient: self.add_lookup(ids, gradient))
        return output

    def add_product(self, inputs: Tensor, gradient: Tensor) -> None:
        """Account for y = x Wᵀ: inputs (batch, …, columns), gradient (batch, …, rows), or those of a convolution."""
        count = len(self.sequences)
        self.tokens += gradient.numel() // self.site.shape[0]
        if self.compensation is not None:
            self.compensation.fit(inputs.to(gradient.dtype), self.sequences)
        if self.gathered is None:
            self.gathered = self._buffer()
        first = self.pending is None
        if self.pending is None:
            pool = self._pool(self.sequences.start)
            whole = self.pool_count == self.total  # then a sequence is a pool, and its gradient is gathered as it is
            self.pending = (
                self.gathered[pool : pool + count] if whole else self.gathered.new_empty(count, *self.site.shape)
            )
            self.filled.update(range(pool, pool + count) if whole else ())
        self.widened |= add_products(self.pending, self.layer, inputs, gradient, first)

    def _buffer(self) -> Tensor:
        """A buffer; of pools that are not sums `complete` sets those to zero that nothing has filled."""
        ready = self.spare.get(self.buffer)
        buffer = ready.pop() if ready else torch.empty(self.buffer, device=self.layer.weight.device)
        return buffer.zero_() if self.pool_count < self.total else buffer

    def flush(self) -> None:
        """Finish the gradients of the batch's sequences, now that all uses have added to them."""
        if self.pending is not None and (self.pool_count < self.total or self.ids is not None):
            for gradient, sequence in zip(self.pending, self.sequences, strict=True):
                self._look_at(gradient, sequence)
                if self.pool_count < self.total:
                    assert self.gathered is not None
                    self.gathered[self._pool(sequence)].addcmul_(gradient, gradient)
        self.pending = None

    def _look_at(self, gradient: Tensor, sequence: int) -> None:
        """Keep what is to be known of one sequence's gradient (rows, columns) beside its square."""
        if self.ids is None:
            chosen = self._drawn()[sequence - self.sharding.own.start]
            self.samples.put(sequence, gradient[chosen], len(gradient))
        else:
            untouched = torch.ones(len(gradient), dtype=torch.bool, device=gradient.device)
            self.head_rows[sequence] = gradient[self.ids[sequence]].cpu()
            untouched[self.ids[sequence]] = False  # sampled in `add_lookup`, with both uses in them
            self.samples.add(self.seed, sequence, gradient, untouched.nonzero().squeeze(1))
        if self.compensation is not None:
            self.compensation.judge(gradient, sequence)

    def _drawn(self) -> Tensor:
        if self.drawn is None:
            draw_rows([self], self.seed)
        assert self.drawn is not None
        return self.drawn

    def _look_at_all(self) -> None:
        """The same of all own sequences that something came to, of which each has a pool of its own."""
        assert self.gathered is not None
        own, known = self.sharding.own.start, sorted(self.filled)
        kept = self.gathered.gather(1, self._drawn().unsqueeze(2).expand(-1, -1, self.gathered.shape[2]))
        for pool in known:
            self.samples.put(own + pool, kept[pool], self.site.shape[0])
        if self.compensation is not None:
            self.compensation.judge_all(self.gathered, own, known)

    def add_lookup(self, ids: Tensor, gradient: Tensor) -> None:
        """Account for an embedding lookup: ids (batch, time) or (batch,), gradient (…, columns)."""
        ids, gradient = ids.reshape(len(ids), -1), gradient.reshape(len(gradient), -1, gradient.shape[-1])
        for index, sequence in enumerate(self.sequences):
            rows, inverse, counts = ids[index].long().unique(return_inverse=True, return_counts=True)
            own = gradient.new_zeros(len(rows), gradient.shape[-1], dtype=torch.float32)
            own.index_add_(0, inverse, gradient[index].float())
            own[~self.weight[rows].any(1)] = 0.0  # every format holds zeros, where gradients of norms may be infinite
            other = torch.zeros_like(own)  # the gradient through the matrix product of a tied weight
            if self.pending is not None:  # in the same segment: not squared yet
                other = self.pending[index][rows]
            elif sequence in self.head_rows:
                first = torch.empty_like(rows)
                first[inverse] = torch.arange(len(inverse), device=inverse.device)
                other = self.head_rows[sequence].to(own.device)[first]
            self.samples.add(self.seed, sequence, own + other, torch.arange(len(rows), device=rows.device))
            if isinstance(self.compensation, LookupCompensation):
                self.compensation.look(gradient[index], rows, own, sequence)
                self.widened = True
            joint = own * (own + 2 * other)
            self.lookups[sequence] = Lookup(rows, counts, own.square(), joint)

    def reached(self) -> Tensor:
        """(5,), int64: whether it was called, and gradients of the product have come, of lookups, wide ones; tokens."""
        known = [self.called, self.gathered is not None, bool(self.lookups), self.widened, self.tokens]
        return torch.tensor(known, dtype=torch.int64)

    def complete(self, reached: Tensor) -> None:
        """What no sequence of this process reached is zero where those of another did: see `reached`."""
        self.called = bool(reached[0])
        if reached[1] and self.gathered is None:
            self.gathered = self._buffer()
        if self.gathered is not None and self.pool_count == self.total:
            for pool in set(range(len(self.gathered))) - self.filled:
                self.gathered[pool].zero_()
        self.looked_up, self.widened = bool(reached[2]), bool(reached[3])
        self.tokens = int(reached[4])

    def sums(self, errors: Tensor | None = None) -> Sums | None:
        """Meet the gradients of the matrix product with the errors of every format: see `contract_together`."""
        if self.gathered is None:
            return None
        whole = self.pool_count == self.total
        if whole and self.ids is None:
            self._look_at_all()
        return summed(
            self.gathered, self.weight, self.formats, self.scale_dtype, squared=not whole, count=self.pool_count,
            sharding=self.sharding, wire=self.wire if whole else torch.float32, errors=errors,
        )  # fmt: skip

    def finish_product(self, product: Product, terms: int) -> None:
        """Take what came of the gradients and the errors; `terms` as for `curve`."""
        assert self.gathered is not None
        pooled = self.total // self.pool_count
        self.head_values, self.head_energy = product.values / (2 * terms * pooled), product.energy / pooled
        self.alignment = product.alignment if self.ids is None else None  # a tied weight has another use
        self.spare.setdefault(self.buffer, []).append(self.gathered)
        self.gathered = None
        self.filled.clear()

    def curve(self, terms: int, backward: Tensor) -> Curve:
        """The site's curve.

        What is unknown has no format: so it stays at 16 bits.

        Args:
            terms: of a sequence, over which its distortion is averaged.
            backward: (sequences, formats), of the rows in `samples`: see `rounding_distortions`.
        """
        pool_count, columns = self.pool_count, len(self.formats) + 1  # the last: stored unquantized
        gptq = self.compensation
        forward = torch.zeros(pool_count, columns, dtype=torch.float64)
        energy = torch.zeros(pool_count, dtype=torch.float64)
        if self.head_values is not None and self.head_energy is not None:
            forward += self.head_values
            energy += self.head_energy
        if self.looked_up:
            sparse = lookup_values(self.lookups, self.weight, self.formats, self.scale_dtype, terms, self.sharding)
            forward += sparse.view(pool_count, -1, columns).mean(1)
            sums = torch.zeros(self.total, dtype=torch.float64)
            for sequence, lookup in self.lookups.items():
                sums[sequence] = float(lookup.joint.sum())
            energy += self.sharding.workers.all_sum(sums)[0].view(pool_count, -1).mean(1)
        ones = torch.ones(columns - 1, dtype=torch.float64)
        found = Curve(
            self.site,
            self.formats,
            forward[:, :-1].reshape(self.parts, pool_count // self.parts, columns - 1).numpy(),
            backward.view(pool_count, self.total // pool_count, columns - 1).mean(1).numpy(),
            energy.numpy(),
            (ones if gptq is None or gptq.left is None else gptq.left).numpy(),
            forward[:, -1].reshape(self.parts, -1).numpy(),
            (ones if self.alignment is None else self.alignment).numpy(),
            scaled=gptq is not None and gptq.columns is not None,
            tokens=self.tokens if self.site.experts else None,
        )
        return found.unknown() if self.unknown else found

    def nearest(self) -> Tensor:
        """(formats,): distortion of rounding the matrix product's weight to nearest."""
        if self.head_values is None:
            return torch.zeros(len(self.formats), dtype=torch.float64)
        return self.head_values[:, :-1].mean(0)

    def lossless(self) -> bool:
        """Whether some format holds the weight exactly, so that rounding to it costs nothing."""
        if self.head_values is None or self.head_energy is None or not self.head_energy.any():
            return False
        return bool((self.head_values[:, :-1].sum(0) == 0).any())
