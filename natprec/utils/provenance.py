"""How a file came to be: versions, date, command, device, model and text, as a paper's appendix asks for them.

Models and texts have names and digests; paths, users and hosts are nobody's business: see `natprec.utils.records`.
"""

from __future__ import annotations

import os
import platform
import shlex
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from natprec.utils.schema import Positive, Seed

PACKAGES = ("natprec", "torch", "transformers", "compressed-tensors")
"""Whose versions change numbers, or what is written."""


@dataclass(frozen=True)
class MeasuredText:
    """The calibration text.

    Attributes:
        name: of the file or dataset; `digest`: of the file's bytes, None where it is none.
        tokens_digest: of the token ids: `sequences` × `length` of them.
        parts: kinds of text; of two, the other one is the model's own.
    """

    name: str
    digest: str | None
    tokens_digest: str
    sequences: Positive
    length: Positive
    parts: Positive


@dataclass(frozen=True)
class Provenance:
    """How a plan or a verification came to be.

    Attributes:
        versions: package → version, Python's included.
        date: UTC, ISO 8601; of SOURCE_DATE_EPOCH where that is set.
        command: with the options that were given; a file is called by its name.
        device: what computed: of a GPU its model.
        model, model_digest: the original; `model_revision`: its commit on the hub, None where it is not from there.
    """

    versions: dict[str, str]
    date: str
    command: str
    device: str
    seed: Seed
    model: str
    model_digest: str
    model_revision: str | None = None
    calibration: MeasuredText | None = None


def versions() -> dict[str, str]:
    """Package → version, of those that are installed."""
    return {"python": platform.python_version(), **{name: _installed(name) for name in PACKAGES}}


@cache
def _installed(name: str) -> str:
    """The package's version; found once, as each look reads a file of metadata."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def now() -> str:
    """UTC to the second, such as 2026-11-29T23:40:00Z; reproducible builds set SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(given) if given.isdigit() else time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def command_line(command: str, options: Iterable[tuple[str, object]]) -> str:
    """A command with options, as a shell takes it.

    >>> command_line("natprec solve m", [("--eps", 0.01), ("--trust-remote-code", True)])
    'natprec solve m --eps 0.01 --trust-remote-code'
    """
    parts = [command]
    for flag, value in options:
        parts.append(flag)
        if value is not True:
            parts.append(shlex.quote(f"{value:g}" if isinstance(value, float) else str(value)))
    return " ".join(parts)
