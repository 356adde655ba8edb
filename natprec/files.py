"""Nothing half-written: what has its final name is complete.

Files and folders are written beside their destination under a temporary name, flushed, and then
renamed in one step. A killed run leaves a name that ends in `.partial` or begins with `.natprec-`;
it never leaves a checkpoint that looks whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natprec.errors import OutputError


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Without `sync` that holds when the process is killed, but not when the machine loses power.

    Raises:
        OutputError: no permission, no such folder, disk full.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".natprec-", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def current_umask() -> int:
    """The process's file-creation mask (reading it means setting it twice)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write JSON, indented, keys in the order given, atomically."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


@contextlib.contextmanager
def new_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    Raises:
        OutputError: `path` exists and `overwrite` is false, or it cannot be written.
    """
    refuse_existing(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".natprec-{path.name}-", dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~current_umask())
        replace_folder(temporary, path)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise unwritable(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an older `target` is moved aside first and deleted last."""
    aside: Path | None = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=f".natprec-old-{target.name}-", dir=target.parent))
        os.replace(target, aside / target.name)
    os.replace(source, target)
    if aside is not None:
        shutil.rmtree(aside, ignore_errors=True)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Say early that an output exists, before any hour of work.

    Raises:
        OutputError: `path` exists and `overwrite` is false.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"output {str(path)!r} exists; choose another or add --overwrite")
    parent = next(folder for folder in [path.absolute(), *path.absolute().parents] if folder.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write {str(path)!r}: no write permission in {str(parent)!r}")


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a failed write, with what to do about the usual causes."""
    remedy = {28: "free space on that disk", 13: "choose a folder you may write to"}
    advice = remedy.get(error.errno or 0, "check the path")
    return OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; {advice}")


def folder_bytes(path: Path) -> int:
    """Bytes of all files directly in a folder, symbolic links followed."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())
