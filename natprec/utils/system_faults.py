"""What the machine refuses, whichever library it refused it to: its cause, and what the user can do about it.

Python raises OSError and MemoryError; torch a RuntimeError that names its allocator; safetensors, tokenizers and
hf_xet, which are written in Rust, an error of their own with the system's number in its text.
"""

from __future__ import annotations

import errno
import os
import re

from natprec.errors import first_line

REMEDIES = {
    errno.ENOSPC: "free space on that disk",
    errno.EDQUOT: "free space within your quota",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.ELOOP: "the links go round in a circle: name the file itself",
    errno.EACCES: "choose a folder you may write to",
    errno.EROFS: "choose a folder on a disk that is not read-only",
    errno.EIO: "the disk or the connection to it failed; check it, and run the command again",
    errno.ESTALE: "the network disk was mounted anew; run the command again",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs: the system has no more open files to give",
}
"""Number of a system's error → what to do about it."""

MEMORY = "free memory, lower --tokens or --sequence-length, or read the model block by block with --weights disk"


def system_error(error: BaseException) -> OSError | None:
    """The operating system's error behind one of Python or of a Rust library, which only names it."""
    if isinstance(error, FileNotFoundError) and error.errno is None:  # safetensors' has a text alone
        return FileNotFoundError(errno.ENOENT, str(error))
    if isinstance(error, OSError):
        return error
    for number in map(int, re.findall(r"\((?:os error )?(\d{1,3})\)", str(error))):
        if f"os error {number}" in str(error) or os.strerror(number) in str(error):
            return OSError(number, os.strerror(number))
    if "StorageFull" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return None


def remedy_of(error: BaseException) -> str | None:
    """What to do about what the system refused; None: it refused nothing that is known."""
    cause = system_error(error)
    return None if cause is None else REMEDIES.get(cause.errno or 0)


def out_of_memory(error: BaseException) -> bool:
    """Whether there was no memory left, be it the machine's or a GPU's."""
    cause = system_error(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "allocate memory" in str(error)
        or (cause is not None and cause.errno == errno.ENOMEM)
    )


def told(error: BaseException) -> str | None:
    """One line that says what the machine refused and what to do; None: it is not the machine's fault."""
    if out_of_memory(error):
        return f"not enough memory ({first_line(error)}); {MEMORY}"
    if isinstance(error, ValueError) and "embedded null" in str(error):
        return "a name has a NUL character in it, which no file has; take it out"
    cause = system_error(error)
    if isinstance(cause, FileNotFoundError):
        return f"{first_line(cause)}; it was there when the command began: put it back, and run the command again"
    remedy = remedy_of(error)
    return None if remedy is None else f"{cause if cause is error else first_line(error)}; {remedy}"
