"""What the headers of safetensors files say: which tensors there are, of what type and shape.

No tensor is read before it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from natprec.errors import ModelError, first_line

FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights, as safetensors calls them."""


_WIDE = {"64": 8.0, "32": 4.0, "16": 2.0, "F6": 0.75, "F4": 0.5}
"""In the name of a type → bytes of a number; all others have one."""


@dataclass(frozen=True)
class Header:
    """One tensor of a file.

    Attributes:
        dtype: as safetensors calls it: 'BF16', 'F8_E4M3', 'U32'.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        each = next((size for part, size in _WIDE.items() if part in self.dtype), 1.0)
        return math.ceil(each * self.elements)

    def read(self, key: str, row: int | None = None) -> Tensor:
        """The tensor by its name in the file, mapped; or of its first dimension one entry.

        Raises:
            ModelError: the file has gone or changed.
        """
        return read_stored(self.file, key, row)


def read_headers(files: Iterable[Path]) -> dict[str, Header]:
    """All tensors of some files by name.

    Raises:
        ModelError: a file is damaged, cut off, or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    found = {}
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    part = opened.get_slice(key)
                    found[key] = Header(file, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise ModelError(
                f"{str(file)!r} is damaged or cut off ({first_line(error)}); download it again, or quantize again"
            ) from error
    return found


def read_stored(file: Path, key: str, row: int | None = None) -> Tensor:
    """One tensor of a safetensors file, mapped; or of its first dimension one entry.

    Raises:
        ModelError: the file has gone or changed.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            return opened.get_tensor(key) if row is None else opened.get_slice(key)[row]
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"weights file {str(file)!r} cannot be read any more ({error}); put it back and add --resume"
        ) from error
