"""What the stand-in for the Hub holds: users, repositories with their commits, and files; see `tests.hub`."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import json
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LFS = ("*.safetensors", "*.gguf", "*.bin", "*.png")


@dataclass(frozen=True)
class User:
    name: str
    role: str = "write"
    granted: bool = False
    """Whether gated repositories are open to them."""


@dataclass
class Commit:
    files: dict[str, dict[str, Any]]
    title: str
    parent: str | None


@dataclass
class Repository:
    private: bool
    gated: bool = False
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> str | None:
        known = self.branches.get(revision) or self.tags.get(revision)
        return known or (revision if revision in self.commits else None)

    def commit(self, branch: str, title: str, changes: dict[str, Any], deleted: list[str]) -> str:
        parent = self.branches.get(branch)
        files = {} if parent is None else dict(self.commits[parent].files)
        for path in deleted:
            files.pop(path, None)
        files |= changes
        said = json.dumps([parent, title, sorted(files.items())])
        sha = hashlib.sha1(said.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = Commit(files, title, parent), sha
        return sha


@dataclass
class Hub:
    """Attributes:
    folder: of large files.
    users: token → user.
    xet: whether large files go by Xet.
    before: called before each request with its method and path.
    """

    folder: Path
    users: dict[str, User]
    xet: bool = False
    before: Callable[[str, str], None] = lambda method, path: None
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    url: str = ""
    uploaded: set[str] = field(default_factory=set)
    """sha256 of what came by LFS."""

    def add(self, name: str, folder: Path | None = None, **settings: Any) -> str:
        """A repository with a folder's files; its first commit."""
        made = self.repositories[name] = Repository(settings.pop("private", False), **settings)
        files = [] if folder is None else [file for file in sorted(folder.rglob("*")) if file.is_file()]
        return made.commit("main", "first", {str(f.relative_to(folder)): self.entry(f.read_bytes(), f.name)
                                             for f in files}, [])  # fmt: skip

    def entry(self, content: bytes, name: str) -> dict[str, Any]:
        if not any(fnmatch.fnmatch(name, pattern) for pattern in LFS):
            return {"oid": blob_id(content), "size": len(content), "content": base64.b64encode(content).decode()}
        sha256 = hashlib.sha256(content).hexdigest()
        (self.folder / sha256).write_bytes(content)
        return large(sha256, len(content))

    def content(self, entry: dict[str, Any]) -> bytes:
        kept = entry.get("content")
        return base64.b64decode(kept) if kept is not None else (self.folder / entry["sha256"]).read_bytes()

    @property
    def cas(self) -> str:
        return f"local://{self.folder / 'xet'}"

    def xet_hash(self, sha256: str) -> str:
        """From the shards that hf_xet wrote: records of 48 bytes, files' hashes with their sha256 in metadata."""
        for file in (self.folder / "xet").rglob("*.mdb"):
            data, place = file.read_bytes(), 48
            while place + 48 <= len(data):
                found, (flags, count) = data[place : place + 32], struct.unpack_from("<II", data, place + 32)
                if found == b"\xff" * 32:
                    break
                place += 48 * (1 + count) + (48 * count if flags & 0x80000000 else 0)
                if flags & 0x40000000:
                    if _hex(data[place : place + 32]) == sha256:
                        return _hex(found)
                    place += 48
        raise KeyError(sha256)


def _hex(value: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def large(sha256: str, size: int) -> dict[str, Any]:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return {"oid": blob_id(pointer.encode()), "size": size, "sha256": sha256}


class Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
