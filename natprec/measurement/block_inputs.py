"""The inputs of a model's blocks, which the way forward leaves for the way back: in memory, or on disk.

On disk they lie in files without a name, which are gone when the process ends, however it ends.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from natprec.utils.atomic_files import unwritable
from natprec.utils.memory import available_bytes

SHARE = 4
"""Of what memory is free the inputs of all blocks may take one part in so many."""


class BlockInputs:
    """A stack of tensors of one shape and dtype.

    Attributes:
        folder: where they are kept; None: in memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: list[Tensor | IO[bytes]] = []
        self._like = torch.empty(0)

    @classmethod
    def suited(cls, first: Tensor, count: int, folder: Path | None) -> BlockInputs:
        """A stack for `count` tensors like `first`, which lies on it: in `folder` where memory is too small."""
        fits = first.nbytes * count * SHARE <= available_bytes() or first.device.type != "cpu"
        stack = cls(None if fits else folder or Path(tempfile.gettempdir()))
        stack.push(first)
        return stack

    def push(self, tensor: Tensor) -> None:
        """Put a tensor on top.

        Raises:
            OutputError: the disk is full.
        """
        if self.folder is None:
            self._kept.append(tensor)
            return
        self._like = tensor.new_empty(0)
        try:
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - closed when it is popped
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tofile(file)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._shape = tensor.shape
        self._kept.append(file)

    def pop(self) -> None:
        """Drop the top."""
        kept = self._kept.pop()
        if not isinstance(kept, Tensor):
            kept.close()

    def __getitem__(self, index: int) -> Tensor:
        kept = self._kept[index]
        if isinstance(kept, Tensor):
            return kept
        kept.seek(0)
        values = torch.from_numpy(np.fromfile(kept, dtype=np.uint8))
        return values.view(self._like.dtype).view(self._shape).to(self._like.device)

    def __len__(self) -> int:
        return len(self._kept)
