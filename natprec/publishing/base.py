"""What is known of the original on the Hub (commit, licence, language), and where a checkpoint was published.

`natprec/published.json` says it, beside the checkpoint in its repository, so that anybody can render the card again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from natprec.utils.own_files import PUBLISHED, read_json, sealed
from natprec.utils.schema import read

VERSION = 1

FILE = "natprec/published.json"
"""Where in a repository it is."""

PERMISSIVE = ("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "unlicense", "isc")
"""Licences, as the Hub calls them, of which a derived model may be public without further terms."""


@dataclass(frozen=True)
class Base:
    """The original, a repository on the Hub.

    Attributes:
        id: of the repository; `revision`: its commit.
        compared: whether the measurement read that commit; else whoever published named it.
        license: as its card calls it, with `license_name` and `license_link` where that is 'other'.
        public: whether everybody can read it.
    """

    id: str
    revision: str
    compared: bool
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    language: list[str] = field(default_factory=list)
    pipeline_tag: str | None = None
    public: bool = False

    @property
    def permissive(self) -> bool:
        """Whether what is made of it may be public without further terms."""
        return self.public and self.license in PERMISSIVE


@dataclass(frozen=True)
class Published:
    """Where a checkpoint is: `repository`, on branch `revision`, and made of what.

    Attributes:
        unverified: why it went up without a verification that vouches for it; empty: one does.
    """

    repository: str
    revision: str = "main"
    base: Base | None = None
    unverified: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values, with version and checksum."""
        return sealed({"version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> Published:
        """Read the file.

        Raises:
            InputError: changed, of another version, or what no natprec wrote.
        """
        value = read_json(path, PUBLISHED, (VERSION,))
        value.pop("version")
        made: Published = read(cls, value, PUBLISHED.place(path))
        return made
