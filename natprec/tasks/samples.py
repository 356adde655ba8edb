"""What a model is given: named tensors whose first dimension counts samples, for text token ids alone.

Whatever runs a model takes samples in batches, in their order, and asks nothing of what they hold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from safetensors.torch import load, save
from torch import Tensor

TOKENS, DECODED = "input_ids", "decoder_input_ids"
"""What transformers calls the token ids of a text, and of the text that an encoder-decoder is given."""

COUNTED = "counted"
"""(samples, positions), bool, of samples whose predictions do not all count: true where one does, so everywhere in text
without a picture. No argument of a model."""

BATCH_TOKENS = 1024


def fitting(length: int) -> int:
    """Samples in a batch of about `BATCH_TOKENS` tokens."""
    return max(1, BATCH_TOKENS // length)


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs of a model.

    Attributes:
        tensors: name of the model's argument → (samples, …).
        length: positions that a sample takes in the model: tokens of a text, patches of an image.
        beside: more of them that are not counted: those of an encoder which a text is decoded from.
    """

    tensors: Mapping[str, Tensor]
    length: int
    beside: int = 0

    @classmethod
    def text(cls, ids: Tensor) -> Samples:
        """Of (sequences, time) token ids."""
        return cls({TOKENS: ids}, ids.shape[1])

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Samples:
        """Of named tensors; a sample has as many positions as the largest of them has places behind its channels."""
        largest = max(tensors.values(), key=lambda tensor: tensor.numel())
        return cls(dict(tensors), max(1, largest.shape[2:].numel()) if largest.dim() > 2 else 1)

    @property
    def ids(self) -> Tensor:
        """(sequences, time): the tokens of a text."""
        return self.tensors[TOKENS if TOKENS in self.tensors else DECODED]

    @property
    def shape(self) -> torch.Size:
        """(samples, positions)."""
        return torch.Size((len(self), self.length))

    @property
    def tokens(self) -> int:
        """Positions of all samples."""
        return len(self) * self.length

    @property
    def device(self) -> torch.device:
        """Where all of them are."""
        return next(iter(self.tensors.values())).device

    @cached_property
    def digest(self) -> str:
        """Which samples these are: 16 hex digits of sha256 over shapes and values; of tokens as int64."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            values = tensor.to("cpu", torch.int64) if name == TOKENS else tensor.cpu()
            label = "" if len(self.tensors) == 1 and name == TOKENS else f"{name};{values.dtype};"
            digest.update(f"{label}{tuple(values.shape)};".encode())
            digest.update(values.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def batches(self, size: int | None = None) -> list[slice]:
        """Which samples run together, as indices.

        Args:
            size: samples of a batch; default: as many as have about `BATCH_TOKENS` tokens.
        """
        step = size or fitting(self.length + self.beside)
        found = []
        for kind in self._kinds():
            found += [slice(start, min(start + step, kind.stop)) for start in range(kind.start, kind.stop, step)]
        return found

    def _kinds(self) -> list[range]:
        """Samples with pictures and those without do not run together; speech is of one kind."""
        if COUNTED not in self.tensors:
            return [range(len(self))]
        text = self.tensors[COUNTED].all(1).tolist()
        ends = [number for number in range(1, len(text)) if text[number] != text[number - 1]]
        return [range(start, end) for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]

    def split(self, size: int | None = None) -> list[Samples]:
        """The batches themselves: see `batches`."""
        return [self[batch] for batch in self.batches(size)]

    def to(self, device: torch.device | str) -> Samples:
        """The same samples, on a device."""
        return replace(self, tensors={name: tensor.to(device) for name, tensor in self.tensors.items()})

    def followed_by(self, other: Samples) -> Samples:
        """These samples, then others of the same names and shapes."""
        both = {name: torch.cat([tensor, other.tensors[name]]) for name, tensor in self.tensors.items()}
        return replace(self, tensors=both)

    def packed(self) -> bytes:
        """For other processes: see `unpacked`."""
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()}
        return self.length.to_bytes(8, "little") + self.beside.to_bytes(8, "little") + save(tensors)

    @classmethod
    def unpacked(cls, content: bytes) -> Samples:
        """The inverse of `packed`; on the CPU."""
        length, beside = (int.from_bytes(content[start : start + 8], "little") for start in (0, 8))
        return cls(load(content[16:]), length, beside)

    def __getitem__(self, index: slice | Tensor) -> Samples:
        return replace(self, tensors={name: tensor[index] for name, tensor in self.tensors.items()})

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))
