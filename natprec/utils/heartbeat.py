"""Whether the other processes of a run still live.

Each process counts up a number in the store through which they found each other, and looks at the numbers of the
others. A number that stands still for `LIMIT` looks belongs to a process that has died or hangs. No clock is read: a
machine that was suspended, or is slow, has looked as seldom as the others have counted.

Whoever waits in an exchange hears of it by an error that names the dead one. Where there is none (a GPU that waits
forever), this process is ended after `GRACE` more looks.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from torch.distributed import Store  # type: ignore[attr-defined]

from natprec.errors import WorkerError

PERIOD = 1.0
"""Seconds between two looks."""

LIMIT = 30
"""Looks after which a number that stands still means death."""

GRACE = 10
"""Looks that this process has left to end by itself, once another one is dead."""

ENDED = "ended"


class Pulse(threading.Thread):
    """Counts for this process and watches the others, until `stop`.

    Args:
        store: a connection of this thread's own; all keys are under `natprec/`.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        super().__init__(daemon=True, name="natprec-pulse")
        self.store, self.rank, self.size = store, rank, size
        self.lost: str | None = None
        self._found, self._over = threading.Event(), threading.Event()
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # a launcher may keep the store for another attempt
        self.keys = [f"natprec/{attempt}/{index}" for index in range(size)]
        self._tell("0")

    def run(self) -> None:
        """Count and look."""
        beats, still, count = [""] * self.size, [0] * self.size, 0
        while not self._over.wait(PERIOD):
            count += 1
            try:
                self._tell(str(count))
                now = [value.decode() for value in self.store.multi_get(self.keys)]
            except RuntimeError as error:
                if not self._over.wait(PERIOD):  # else all is done, and process 0 has gone with the store
                    self._lose(f"process 0, or the launcher that keeps its store, has ended ({first_line(error)})")
                return
            still = [0 if beat != before else n + 1 for beat, before, n in zip(now, beats, still, strict=True)]
            beats = now
            for index, beat in enumerate(beats):
                if index != self.rank and (still[index] >= LIMIT or beat.startswith(ENDED)):
                    self._lose(f"process {index} ({beat.partition(' ')[2]}) has ended, or hangs")
                    return

    def verdict(self, error: RuntimeError) -> Exception:
        """Of an exchange that failed: who is dead; the error itself if all live."""
        self._found.wait(PERIOD * (LIMIT + GRACE))
        return error if self.lost is None else WorkerError(self.lost)

    def stop(self, well: bool) -> None:
        """Count no more; the others are told at once where that is because of an error."""
        self._over.set()
        self.join()
        if not well:
            try:
                self._tell(ENDED)
            except RuntimeError:
                return  # the store has gone too

    def _tell(self, beat: str) -> None:
        self.store.set(self.keys[self.rank], f"{beat} pid {os.getpid()} on {socket.gethostname()}")

    def _lose(self, who: str) -> None:
        self.lost = f"{who}; what was measured is kept: start all processes again, with --resume"
        self._found.set()
        if not self._over.wait(PERIOD * GRACE):
            print(f"natprec: {self.lost}", file=sys.stderr, flush=True)
            os._exit(2)


def first_line(error: Exception) -> str:
    """Of a message of torch, which goes on with a stack."""
    return str(error).partition("\n")[0]
