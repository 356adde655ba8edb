"""The names beside an output: its lock, by which no two runs write it, and its progress.

Anybody may have put something there before: a symbolic link is not followed, and what is not natprec's stays as it is.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from natprec.errors import OutputError
from natprec.utils.atomic_files import unwritable

LOCKED = "process "
"""What a lock file begins with."""


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
    """No other run writes this output within the block: a lock file beside it, which ends with the process.

    Raises:
        OutputError: another run has it, which is named; or the folder cannot be written.
    """
    lock = path.with_name(f".natprec-{path.name}.lock")
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # what another has put there is not followed, and not truncated
            made = not os.path.lexists(lock)
            handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = held.enter_context(os.fdopen(handle, "r+", errors="replace"))
            try:
                owner = file.read(1000)
            except OSError:
                if made:
                    lock.unlink(missing_ok=True)
                raise
            if not _is_lock(file.fileno(), owner):
                raise OutputError(f"{str(lock)!r} is where natprec keeps a lock, and is none; move it away")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.callback(lock.unlink, missing_ok=True)
            file.seek(0)
            file.truncate()
            file.write(f"{LOCKED}{os.getpid()}")
            file.flush()
        except BlockingIOError as error:
            raise OutputError(
                f"output {str(path)!r} is being written by {owner or 'another run'}; wait for it, or choose another"
            ) from error
        except OutputError:
            raise
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise OutputError(f"{str(lock)!r} is a symbolic link, where natprec keeps a lock; remove it") from error
            raise unwritable(path, error) from error
        yield


def beside(path: Path, suffix: str) -> Path:
    """The name beside an output under which progress is kept, a file or a folder.

    Raises:
        OutputError: it is a symbolic link, or holds one: what they point to is not natprec's to write or remove.
    """
    kept = path.with_name(path.name + suffix)
    inside = kept.iterdir() if kept.is_dir() and not kept.is_symlink() else ()
    for entry in (kept, *inside):
        if entry.is_symlink():
            raise OutputError(f"{str(entry)!r} is a symbolic link, where natprec keeps its progress; remove it")
    return kept


def _is_lock(handle: int, content: str) -> bool:
    """Whether an open file is one that `claimed` made: empty or with its text, and under no other name."""
    status = os.fstat(handle)
    alone = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
    return alone and (status.st_size == 0 or re.match(rf"{LOCKED}\d+( on |$)", content) is not None)
