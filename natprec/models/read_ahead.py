"""The tensors of the next segment on their way from disk while one is computed: a thread, into pinned memory.

Only for GPUs. On a CPU the thread would take the core that computes, and the memory of a second segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from natprec.models.weights import Stored


class ReadAhead:
    """Reads what is expected, in that order."""

    def __init__(self, stored: Stored) -> None:
        self._stored = stored
        self._coming: dict[str, Future[Tensor]] = {}
        self._thread = ThreadPoolExecutor(1, "natprec-reads")

    def expect(self, names: Sequence[str]) -> None:
        """Begin to read these tensors; others that were expected are forgotten."""
        for name in self._coming.keys() - set(names):
            self._coming.pop(name).cancel()
        for name in names:
            if name not in self._coming:
                self._coming[name] = self._thread.submit(self._read, name)

    def take(self, name: str) -> Tensor:
        """One tensor in its stored dtype on the CPU: as it was read ahead, once, or read now.

        Raises:
            ModelError: its file has gone or changed.
        """
        coming = self._coming.pop(name, None)
        return self._stored.tensor(name) if coming is None else coming.result()

    def _read(self, name: str) -> Tensor:
        """Memory of its own, from which a GPU copies by itself."""
        tensor = self._stored.tensor(name)
        if torch.cuda.is_available():
            return tensor.contiguous().pin_memory()
        return tensor.clone()
