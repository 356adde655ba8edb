"""Nothing half-written: what has its final name is complete.

Files and folders are written beside their destination under a temporary name, flushed, and then
renamed in one step. A killed run leaves a name that ends in `.partial` or begins with `.natprec-`;
it never leaves a checkpoint that looks whole. The next run of the same output clears the latter.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from natprec.errors import NatprecError, OutputError
from natprec.utils.marks import mark_folder, refuse_foreign
from natprec.utils.system_faults import remedy_of, system_error


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Without `sync` that holds when the process is killed, but not when the machine loses power.

    Raises:
        OutputError: no permission, no such folder, disk full.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=_prefix(path), dir=path.parent)
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
    clear_stale(path)
    refuse_existing(path, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_prefix(path), dir=path.parent))
    except OSError as error:
        raise unwritable(path, error) from error
    try:
        yield temporary
        mark_folder(temporary)
        _share(temporary)
        refuse_existing(path, overwrite)  # hours later
        replace_folder(temporary, path)
    except NatprecError:
        raise
    except Exception as error:
        cause = system_error(error)
        if cause is None:
            raise
        raise unwritable(path, cause) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Rename `source` to `target`; an older `target` is moved aside first and deleted last."""
    aside: Path | None = None
    if target.exists():
        aside = Path(tempfile.mkdtemp(prefix=_prefix(target) + "old-", dir=target.parent))
        os.replace(target, aside / target.name)
    os.replace(source, target)
    if aside is not None:
        _remove(aside)


def clear_stale(path: Path) -> None:
    """Remove what killed runs left beside `path`; what a living process writes stays.

    A run that was killed between the two renames of `replace_folder` has moved the older output
    aside and not yet put the new one in its place: the older one gets its name back.
    """
    name = re.compile(rf"\.natprec-{re.escape(path.name)}-(\d+)-(old-)?\w+")
    with contextlib.suppress(OSError):
        for entry in sorted(path.parent.iterdir()):
            match = name.fullmatch(entry.name)
            if match is None or entry.is_symlink() or _alive(int(match[1])):
                continue
            if match[2] and not path.exists() and (entry / path.name).exists():
                os.replace(entry / path.name, path)
            _remove(entry)


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Say early that a folder exists or cannot be written, before any hour of work.

    Raises:
        OutputError: `path` exists and `overwrite` is false, it is not natprec's, or its folder is not writable.
    """
    if path.exists():
        if not overwrite:
            raise OutputError(f"output {str(path)!r} exists; choose another or add --overwrite")
        refuse_foreign(path)
    _refuse_unwritable(path)


def _refuse_unwritable(path: Path) -> None:
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise OutputError(f"cannot write {str(path)!r}: {str(parent)!r} is a file; choose another folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {str(path)!r}: no write permission in {str(parent)!r}; choose a folder you may write to"
        )
    try:
        with tempfile.TemporaryFile(dir=parent):  # some file systems permit it and have no place
            pass
    except OSError as error:
        raise unwritable(path, error) from error


def refuse_existing_file(path: Path, overwrite: bool, ours: Callable[[Path], bool], kind: str) -> None:
    """As `refuse_existing`, of an output that is one file.

    Args:
        ours: whether a file that exists is natprec's; if not, nothing replaces it.
        kind: what natprec writes there.
    """
    if path.exists() and not overwrite:
        raise OutputError(f"output {str(path)!r} exists; choose another or add --overwrite")
    if path.exists() and not ours(path):
        raise OutputError(f"{str(path)!r} is no {kind} of natprec's, so --overwrite leaves it; choose another")
    _refuse_unwritable(path)


def refuse_other_file(path: Path, ours: Callable[[Path], bool], kind: str) -> None:
    """As `refuse_existing_file`, of a file that the same command wrote before and may write anew.

    Raises:
        OutputError: something else is there, or its folder is not writable.
    """
    if path.exists() and not ours(path):
        raise OutputError(f"output {str(path)!r} exists and is no {kind} of natprec's; choose another")
    _refuse_unwritable(path)


def unwritable(path: Path, error: OSError) -> OutputError:
    """The error for a failed write, with what to do about the usual causes."""
    advice = remedy_of(error) or "check the path"
    return OutputError(f"cannot write {str(path)!r}: {error.strerror or error}; {advice}")


def folder_bytes(path: Path) -> int:
    """Bytes of all files directly in a folder, symbolic links followed."""
    return sum(file.stat().st_size for file in path.iterdir() if file.is_file())


def _prefix(path: Path) -> str:
    """Temporary names say whose they are; `clear_stale` reads that again."""
    return f".natprec-{path.name}-{os.getpid()}-"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _share(folder: Path) -> None:
    """Permissions as the user's umask says: temporary folders and safetensors files are private."""
    mask = current_umask()
    os.chmod(folder, 0o777 & ~mask)
    for entry in folder.rglob("*"):
        os.chmod(entry, (0o777 if entry.is_dir() else 0o666) & ~mask)
