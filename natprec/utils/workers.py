"""One run on many processes: who does what, and how they exchange and add.

The processes are started by torchrun, `accelerate launch` or whatever else sets torch.distributed's variables: RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT. What they do together is made of one operation, an exchange in which
each sends a tensor to every other one. Sums are taken in the order of ranks, so that all have the same bits.

`Workers()` is one process alone; then all of this is nothing to do.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from natprec.errors import InputError
from natprec.utils.heartbeat import Pulse


class Workers:
    """The processes of a run, seen from one of them.

    Attributes:
        rank, size: this one's number, and how many there are.
        stage: what is being worked on, for the count.
        sent: stage → bytes that this process has sent to others.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, transport: torch.device | None = None, pulse: Pulse | None = None
    ) -> None:
        """`transport` is the device whose tensors can be sent."""
        self.rank, self.size = rank, size
        self.stage = "start"
        self.sent: Counter[str] = Counter()
        self._transport, self._pulse = transport, pulse

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and talks."""
        return self.rank == 0

    def share(self, count: int, rank: int | None = None) -> range:
        """Of so many jobs in a row those of a process, by default this one's: as many as any other's, or one more."""
        rank = self.rank if rank is None else rank
        return range(rank * count // self.size, (rank + 1) * count // self.size)

    def assign(self, costs: Mapping[str, float]) -> dict[str, int]:
        """Job → rank: the most expensive first, each to the process with the least to do."""
        load = [0.0] * self.size
        owners = {}
        for job in sorted(costs, key=lambda job: -costs[job]):
            owners[job] = load.index(min(load))
            load[owners[job]] += costs[job]
        return owners

    def exchange(
        self, pieces: Sequence[Tensor], shapes: Sequence[Sequence[int]], wire: torch.dtype | None = None
    ) -> list[Tensor]:
        """Send one tensor to every other process, and receive one of each.

        Args:
            pieces: by receiver, all of one dtype.
            shapes: by sender, of what comes.
            wire: the dtype in which they travel, at all processes the same; default: their own.
        Returns:
            By sender, as they came: what others sent in `wire`, and this process's own piece itself, not a copy.
        Raises:
            WorkerError: another process has died; it is named.
        """
        if self.size == 1:
            return list(pieces)
        own = pieces[self.rank]
        leaving = [piece.new_empty(0) if rank == self.rank else piece for rank, piece in enumerate(pieces)]
        counts = [piece.numel() for piece in leaving]
        expected = [0 if rank == self.rank else math.prod(shape) for rank, shape in enumerate(shapes)]
        out = torch.empty(sum(counts), dtype=wire or own.dtype, device=self._transport)
        into, width = out.new_empty(sum(expected)), out.element_size()
        for part, piece in zip(out.split(counts), leaving, strict=True):
            part.view(piece.shape).copy_(piece)
        received, given = ([width * count for count in each] for each in (expected, counts))
        try:
            dist.all_to_all_single(into.view(torch.uint8), out.view(torch.uint8), received, given)
        except RuntimeError as error:
            assert self._pulse is not None
            raise self._pulse.verdict(error) from error
        self.sent[self.stage] += width * out.numel()
        parts = into.to(own.device).split(expected)
        return [
            own if rank == self.rank else part.view(tuple(shape))
            for rank, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        ]

    def all_sum(self, *tensors: Tensor) -> list[Tensor]:
        """The sum over all processes of each tensor, at all of them; of one dtype, float64 or integers, and small."""
        if self.size == 1:
            return list(tensors)
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        total = torch.zeros_like(flat)
        for part in self.exchange([flat] * self.size, [flat.shape] * self.size):
            total += part
        pieces = total.split([tensor.numel() for tensor in tensors])
        return [piece.view(tensor.shape) for piece, tensor in zip(pieces, tensors, strict=True)]

    def all_max(self, tensor: Tensor) -> Tensor:
        """The largest over all processes, value by value, at all of them."""
        return torch.stack(self.exchange([tensor] * self.size, [tensor.shape] * self.size)).amax(0)

    def sum_at(self, rank: int, tensor: Tensor) -> None:
        """At one process `tensor` becomes the sum of all processes'; each of them adds up some rows."""
        if self.size == 1:
            return
        bands = [tensor[own.start : own.stop] for own in (self.share(len(tensor), other) for other in range(self.size))]
        band = torch.zeros_like(bands[self.rank])
        for part in self.exchange(bands, [band.shape] * self.size):
            band += part
        pieces = [band if other == rank else band[:0] for other in range(self.size)]
        parts = self.exchange(pieces, [each.shape if self.rank == rank else (0,) for each in bands])
        if self.rank == rank:
            torch.cat(parts, out=tensor)

    def all_bytes(self, content: bytes) -> list[bytes]:
        """What each process gives, in the order of ranks, at all of them."""
        if self.size == 1:
            return [content]
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = len(own)
        shapes = [(size,) for size in self.all_sum(sizes)[0].tolist()]
        return [part.numpy().tobytes() for part in self.exchange([own] * self.size, shapes)]

    def from_first(self, content: bytes | None) -> bytes:
        """Bytes that only process 0 has, at all of them."""
        return self.all_bytes((content or b"") if self.first else b"")[0]

    def wait(self) -> None:
        """Go on when all processes have come so far."""
        self.all_sum(torch.zeros(1, dtype=torch.int64))

    def refuse_difference(self, what: str, content: bytes) -> None:
        """Of what must be the same everywhere; processes compare its digests, so that it may be of any length.

        Raises:
            InputError: names the processes that differ.
        """
        own = torch.frombuffer(bytearray(hashlib.sha256(content).digest()), dtype=torch.uint8)
        found = self.exchange([own] * self.size, [own.shape] * self.size)
        others = [str(rank) for rank, value in enumerate(found) if not torch.equal(value, found[0])]
        if others:
            raise InputError(
                f"{what} of process {', '.join(others)} are not those of process 0; "
                "give all hosts the same files, options and natprec, and --out a folder that all of them see"
            )

    def sent_by_all(self) -> dict[str, int]:
        """Stage → bytes that all processes together have sent, until now."""
        counts = dict(self.sent)
        (total,) = self.all_sum(torch.tensor(list(counts.values()), dtype=torch.int64))
        return dict(zip(counts, total.tolist(), strict=True))
