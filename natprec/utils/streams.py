"""Standard output and error that are full, closed, or that nobody reads any more (`| head`, `> /dev/full`, `2>&-`).

The work goes on without them: what it leaves on disk is worth more than what it says. At the end the exit code tells
whether standard output has taken all; a reader that went away on purpose is no fault.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO


class Lasting:
    """A stream that fails once at most, without a word; all else is the stream's own.

    Attributes:
        error: what it failed with.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        """See `TextIO`."""
        if self.error is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """See `TextIO`."""
        if self.error is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """What is still buffered goes nowhere, else Python would fail with it when it ends."""
        self.error = error
        with contextlib.suppress(OSError, ValueError):  # a stream without a file
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def lasting() -> Iterator[Lasting]:
    """Standard output and error are `Lasting` within the block; gives the output."""
    for number in range(3):  # else the next file that is opened has this number, and a library's messages go there
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    known = sys.stdin, sys.stdout, sys.stderr
    with open(os.devnull, encoding="utf-8") as nothing, open(os.devnull, "w", encoding="utf-8") as nowhere:
        out, err = (Lasting(stream or nowhere) for stream in known[1:])
        sys.stdin, sys.stdout, sys.stderr = known[0] or nothing, out, err
        try:
            yield out
        finally:
            out.flush()
            err.flush()
            sys.stdin, sys.stdout, sys.stderr = known


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    return isinstance(getattr(sys.stdout, "error", None), BrokenPipeError)
