"""Which samples each process of a run works on, batch by batch, and how what they find comes together.

Processes take whole batches, so that all products of matrices are those of one process; or, where one step follows
another on a batch (learned rounding), each takes a part of every batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.tasks import Samples
from natprec.utils.workers import Workers


@dataclass(frozen=True)
class Share:
    """Samples that are shared out.

    Attributes:
        whole: the batches of all samples.
        parts: rank → number of a batch → the numbers of its samples that this process has; batches of which it has
            none are left out.
    """

    whole: tuple[range, ...]
    parts: tuple[dict[int, range], ...]
    workers: Workers = field(default_factory=Workers)

    @classmethod
    def of(cls, samples: Samples, workers: Workers, divided: bool = False) -> Share:
        """Share out samples.

        Args:
            divided: every batch is divided; else each goes to one process.
        """
        whole = tuple(range(each.start, each.stop) for each in samples.batches())
        if not divided:
            shares = [workers.share(len(whole), rank) for rank in range(workers.size)]
            return cls(whole, tuple({number: whole[number] for number in share} for share in shares), workers)
        parts: list[dict[int, range]] = [{} for _ in range(workers.size)]
        for number, batch in enumerate(whole):
            for rank in range(workers.size):  # who begins changes, so that small batches do not all go to one process
                own = workers.share(len(batch), (rank + number) % workers.size)
                if own:
                    parts[rank][number] = batch[own.start : own.stop]
        return cls(whole, tuple(parts), workers)

    def refuse_idle(self) -> None:
        """Raises InputError where a process has nothing to do."""
        busy = sum(map(bool, self.parts))
        if busy < self.workers.size:
            raise InputError(
                f"{self.whole[-1].stop} sequences are work for {busy} processes, and there are {self.workers.size}; "
                f"raise --tokens, or start {busy} processes or fewer"
            )

    @property
    def own(self) -> dict[int, range]:
        """Number of a batch → this process's samples of it."""
        return self.parts[self.workers.rank]

    @cached_property
    def numbers(self) -> list[int]:
        """The numbers of this process's samples, in the order in which it has them."""
        return [number for part in self.own.values() for number in part]

    @cached_property
    def batches(self) -> list[slice]:
        """This process's parts of batches, as indices of its own samples."""
        found, start = [], 0
        for part in self.own.values():
            found.append(slice(start, start + len(part)))
            start += len(part)
        return found

    @cached_property
    def fractions(self) -> list[float]:
        """How much of its batch each of these parts is."""
        return [len(part) / len(self.whole[number]) for number, part in self.own.items()]

    def take(self, samples: Samples) -> Samples:
        """This process's samples."""
        return (
            samples
            if self.workers.size == 1
            else samples[torch.tensor(self.numbers, dtype=torch.int64, device=samples.device)]
        )

    def of_batch(self, number: int, tensor: Tensor) -> Tensor:
        """Of what all samples of a batch have, this process's part."""
        part, first = self.own[number], self.whole[number].start
        return tensor[part.start - first : part.stop - first]

    def batch_by_batch(self, own: Sequence[Tensor]) -> list[Tensor]:
        """From every process's parts, each (own samples of the batch, time, hidden), whole batches at process 0 alone.

        Others have an empty list.
        """
        workers = self.workers
        if workers.size == 1:
            return list(own)
        trailing = workers.all_max(torch.tensor(own[0].shape[1:] if own else (0, 0)))
        sent = torch.cat(list(own)) if own else torch.empty(0, *trailing.tolist())
        pieces = [sent if rank == 0 else sent[:0] for rank in range(workers.size)]
        counts = [sum(map(len, part.values())) if workers.first else 0 for part in self.parts]
        found = workers.exchange(pieces, [(count, *sent.shape[1:]) for count in counts])
        if not workers.first:
            return []
        order = torch.tensor([number for part in self.parts for piece in part.values() for number in piece])
        everything = torch.cat(found)[order.argsort().to(sent.device)]
        return list(everything.split([len(batch) for batch in self.whole]))
