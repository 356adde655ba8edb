"""A folder of files of one kind: found, told apart by content, divided into what is measured on and what judges."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from natprec.errors import InputError

MOST = 512
"""Files that are taken of a folder, spread over it; each is read before a model is loaded."""

HELD_OUT = 4
"""One in so many files judges."""


def digest(file: Path) -> bytes:
    """sha256 over a file."""
    return hashlib.sha256(file.read_bytes()).digest()


@dataclass(frozen=True)
class Kind:
    """Files that are samples of a model.

    Attributes:
        what: they are, as the option that names the folder says it; `one` of them, and several (`of`).
        suffixes: by which they are known; others in the folder are passed over.
    """

    what: str
    one: str
    of: str
    suffixes: tuple[str, ...]

    def within(self, folder: str | Path) -> list[Path]:
        """All in a folder and in those within it, by name, at most `MOST`; none where it is no folder."""
        place = Path(folder).expanduser()
        files = sorted(file for file in place.rglob("*") if file.suffix.lower() in self.suffixes and file.is_file())
        return [files[number * len(files) // min(MOST, len(files))] for number in range(min(MOST, len(files)))]

    def find(self, folder: str | Path) -> list[Path]:
        """The same, each content once.

        Raises:
            InputError: no folder, or not two different files: one to measure on and one to judge on.
        """
        place = Path(folder).expanduser()
        if not place.is_dir():
            what = "is no folder" if place.exists() else "does not exist"
            raise InputError(f"{self.what} {str(folder)!r} {what}; give a folder of {self.of}")
        files = self.within(folder)
        if not files:
            known = ", ".join(self.suffixes[:4]) + (" …" if len(self.suffixes) > 4 else "")
            raise InputError(f"{self.what} {str(folder)!r} holds no {self.one} ({known}); give a folder of {self.of}")
        different = {digest(file): file for file in reversed(files)}
        if len(different) < 2:
            raise InputError(
                f"{self.what} {str(folder)!r} holds one {self.one} ({files[0].name!r}); give two or more, as those "
                "that are measured on do not judge"
            )
        return sorted(different.values())


PICTURES = Kind(
    "images", "picture", "pictures",
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"),
)  # fmt: skip
RECORDINGS = Kind("recordings", "recording", "recordings", (".wav", ".wave"))
KINDS = (PICTURES, RECORDINGS)


def divided(files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Those to measure on, and those that judge: at least one of each.

    >>> [[file.name for file in part] for part in divided([Path(name) for name in "abcdef"])]
    [['a', 'b', 'd', 'e', 'f'], ['c']]
    """
    judging = {number for number in range(len(files)) if number % HELD_OUT == HELD_OUT // 2} or {len(files) - 1}
    measured = [file for number, file in enumerate(files) if number not in judging]
    return measured, [file for number, file in enumerate(files) if number in judging]


def spread_over(files: Sequence[Path], count: int) -> list[Path]:
    """So many of them, or all.

    >>> [file.name for file in spread_over([Path(name) for name in "abcdef"], 2)]
    ['b', 'e']
    """
    count = min(count, len(files))
    return [files[(2 * place + 1) * len(files) // (2 * count)] for place in range(count)]


def contents(folder: str | Path) -> list[bytes]:
    """Digests of the pictures and recordings of a folder, wherever in it they are.

    Raises:
        InputError: it holds neither.
    """
    found = {digest(file) for kind in KINDS for file in kind.within(folder)}
    return sorted(found or {digest(file) for file in PICTURES.find(folder)})
