"""Hooks that are taken off again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Protocol


class Removable(Protocol):
    """A hook's handle."""

    def remove(self) -> None:
        """Take the hook off."""


@contextlib.contextmanager
def attached(handles: Iterable[Removable]) -> Iterator[None]:
    """Hooks that are on already are taken off at the end of the block, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
