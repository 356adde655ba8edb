"""Text of tokens, piece by piece, as it becomes certain; it ends before a stop string."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Pieces:
    """Text of tokens as it becomes certain: a character may take several, a space may come before the next, and what
    may be the beginning of a stop string waits for its end.
    """

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None], stop: tuple[str, ...] = ()) -> None:
        from transformers import TextStreamer

        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: self._take(text)  # type: ignore[method-assign]
        self._streamer, self._on_text = streamer, on_text
        self._stop, self._waiting = stop, ""
        self._text: list[str] = []
        self.stopped = False

    def _take(self, text: str) -> None:
        if self.stopped:
            return
        self._waiting += text
        met = [place for each in self._stop if (place := self._waiting.find(each)) >= 0]
        if met:
            self.stopped = True
            self._show(self._waiting[: min(met)])
            return
        kept = max((_overlap(self._waiting, each) for each in self._stop), default=0)
        ready, self._waiting = self._waiting[: len(self._waiting) - kept], self._waiting[len(self._waiting) - kept :]
        self._show(ready)

    def _show(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._on_text(text)

    def add(self, token: int) -> None:
        """One more token."""
        self._streamer.put(torch.tensor([token]))

    def end(self) -> str:
        """There are no more; returns the whole text."""
        self._streamer.end()
        if not self.stopped:
            self._show(self._waiting)
        return "".join(self._text)


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text that a stop string may begin with.

    >>> _overlap("so be it. Us", "User:"), _overlap("abc", "x")
    (2, 0)
    """
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if stop.startswith(text[-size:])), 0)
