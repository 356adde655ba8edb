"""A shared library from C files: compiled once for each version, in a folder that is this user's alone.

What is loaded runs, so a file of somebody else's, one that others may write, or one that is not as it was compiled
(its name carries the digest of its content) is passed over. Where there is no such folder (no HOME, a home of another
user, a read-only one), each process compiles for itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

SECONDS = 120
"""That the compiler may take."""


def loaded(compiler: str, flags: Sequence[str], folder: Path) -> ctypes.CDLL:
    """The library of all C files in a folder.

    Raises:
        OSError, subprocess.SubprocessError: it was not compiled, or cannot be loaded.
    """
    sources = b"".join(file.read_bytes() for file in sorted(folder.glob("*.[ch]")))
    version = hashlib.sha256(sources + " ".join(flags).encode()).hexdigest()[:16]
    with contextlib.ExitStack() as stack:
        cache = private_folder() or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="natprec-")))
        kept = (file for file in sorted(cache.glob(f"native-{version}-*.so")) if is_intact(file))
        found = next(kept, None) or _compiled([compiler, *flags], folder, cache, version)
        return ctypes.CDLL(str(found))  # stays mapped when a temporary folder goes


def private_folder() -> Path | None:
    """Natprec's folder in this user's cache, which nobody else may enter; None where there can be none."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    base = Path(given) if os.path.isabs(given) else Path(os.path.expanduser("~"), ".cache")
    folder = base / "natprec"
    if not base.is_absolute():
        return None
    try:
        base.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            return None
        if status.st_mode & 0o077:
            folder.chmod(0o700)
    except OSError:
        return None
    return folder


def is_intact(file: Path) -> bool:
    """Whether a compiled library is this user's, nobody else may write it, and its content is what its name says."""
    status = file.lstat()
    private = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    named = re.fullmatch(r"native-\w+-(\w+)\.so", file.name)
    return private and named is not None and _digest(file) == named[1]


def _compiled(command: list[str], folder: Path, cache: Path, version: str) -> Path:
    """Under a temporary name first: another process may be doing the same."""
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        made = Path(temporary) / "native.so"
        sources = map(str, sorted(folder.glob("*.c")))
        subprocess.run(
            [*command, *sources, "-o", str(made), "-lm"], check=True, capture_output=True, text=True, timeout=SECONDS
        )
        made.chmod(0o700)
        built = cache / f"native-{version}-{_digest(made)}.so"
        os.replace(made, built)
    return built


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:32]
