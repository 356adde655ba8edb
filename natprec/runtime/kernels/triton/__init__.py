"""The Triton kernel for CUDA: W2 to W8, A16 or A8, with the epilogue inside.

Importing this package, and `ops`, needs neither triton nor a GPU. `kernel` imports triton.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

from natprec.errors import ModelError


@functools.cache
def launcher() -> ModuleType:
    """`natprec.runtime.kernels.triton.launch`, which only what launches a kernel imports.

    Raises:
        ModelError: triton is not installed.
    """
    try:
        return importlib.import_module("natprec.runtime.kernels.triton.launch")
    except ModuleNotFoundError as error:
        raise ModelError("natprec's kernels for CUDA need triton, which is missing; run: pip install triton") from error
