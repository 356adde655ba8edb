"""Which sequences each process measures, and how what it gathered reaches the others.

A sequence's gradients are needed whole, by rows: the number of directions of a weight's gradients is made of products
between gradients of different sequences, but all of it is a sum over rows. So at the end of a segment each process
receives some rows of all sequences, rounds those rows of the weight, and contracts. What is small is added up.

Processes take whole batches, and rows in the steps in which one process would take them: each product of matrices is
the same one whatever the number of processes, and what differs is the order of sums in float64 (in float32 where a
pool of sequences lies in two processes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.tasks import Samples
from natprec.utils.workers import Workers

Rows = TypeVar("Rows", Tensor, Samples)


@dataclass(frozen=True)
class Sharding:
    """The sequences of a measurement, shared out.

    Attributes:
        sequences: of each process, consecutive and not empty.
    """

    sequences: tuple[range, ...]
    workers: Workers = field(default_factory=Workers)

    @classmethod
    def alone(cls, total: int) -> Sharding:
        """One process does all."""
        return cls((range(total),))

    @classmethod
    def of(cls, batches: Sequence[slice], workers: Workers) -> Sharding:
        """Share out whole batches.

        Raises:
            InputError: there are fewer than processes.
        """
        if len(batches) < workers.size:
            raise InputError(
                f"{batches[-1].stop} sequences are {len(batches)} batches, too few for {workers.size} processes; "
                f"raise --tokens, or start {len(batches)} processes or fewer"
            )
        shares = [workers.share(len(batches), rank) for rank in range(workers.size)]
        return cls(tuple(range(batches[own[0]].start, batches[own[-1]].stop) for own in shares), workers)

    @property
    def total(self) -> int:
        """Sequences of all processes."""
        return self.sequences[-1].stop

    @property
    def own(self) -> range:
        """This process's."""
        return self.sequences[self.workers.rank]

    def pool(self, pool_count: int, rank: int | None = None) -> range:
        """The pools in which a process's sequences are, of so many in all; neighbours may have one in common."""
        own = self.sequences[self.workers.rank if rank is None else rank]
        return range(own.start * pool_count // self.total, (own.stop - 1) * pool_count // self.total + 1)

    def take(self, everything: Rows) -> Rows:
        """This process's part of samples, or of (sequences, ...)."""
        return everything[self.own.start : self.own.stop]

    def gather(self, own: Tensor, at: int | None = None) -> Tensor:
        """From each process's part of (sequences, ...) the whole, at all of them or at `at`; others keep theirs."""
        workers = self.workers
        if workers.size == 1:
            return own
        nothing = own[:0]
        pieces = [own if at in (None, rank) else nothing for rank in range(workers.size)]
        counts = [len(each) if at in (None, workers.rank) else 0 for each in self.sequences]
        parts = workers.exchange(pieces, [(count, *own.shape[1:]) for count in counts])
        return torch.cat(parts) if at in (None, workers.rank) else own

    def by_rows(
        self, gathered: Tensor, pool_count: int, step: int, wire: torch.dtype | None = None
    ) -> Iterator[tuple[range, Tensor]]:
        """Exchange gradients: from all rows of own pools to own rows of all pools, `step` at a time.

        What others sent stays as it came, and becomes one tensor only for the few rows that are looked at.

        Args:
            gathered: (own pools, rows, columns); of a pool in common each process has its own sequences' sum.
            wire: a dtype in which all of them are exact, at all processes; default: their own.
        Yields:
            Which rows, and (pools, these rows, columns), which may be overwritten.
        """
        workers, (_, rows, columns) = self.workers, gathered.shape
        if workers.size == 1:
            for start in range(0, rows, step):
                yield range(start, min(start + step, rows)), gathered[:, start : start + step]
            return
        steps = [workers.share(-(-rows // step), rank) for rank in range(workers.size)]
        bounds = [range(each.start * step, min(each.stop * step, rows)) for each in steps]
        own = bounds[workers.rank]
        pools = [self.pool(pool_count, rank) for rank in range(workers.size)]
        pieces = [gathered[:, each.start : each.stop] for each in bounds]
        parts = workers.exchange(pieces, [(len(pool), len(own), columns) for pool in pools], wire)
        for start in range(0, len(own), step):
            wanted = own[start : start + step]
            chunk, filled = gathered.new_empty(pool_count, len(wanted), columns), 0
            for pool, part in zip(pools, parts, strict=True):
                found, common = part[:, start : start + step], filled - pool.start
                chunk[pool.start : filled] += found[:common]
                chunk[filled : pool.stop] = found[common:]
                filled = pool.stop
            yield wanted, chunk
