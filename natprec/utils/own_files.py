"""natprec's own files, read in one way: bounded, strict about JSON, with a version and a checksum.

- A version that is not known, older or newer, is refused by its number and never misread; an older one is upgraded
  where all that it says still means something. A file without one is of version 0.
- The checksum is of what a file says, not of its spelling: spaces and the order of keys are free. A wrong one is
  refused. None is accepted: whoever edits a file on purpose takes the checksum out.
- A file of another kind is refused by what it is: 'm' is a measurement, and a plan is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.errors import InputError
from natprec.utils.json_text import from_json
from natprec.utils.marks import KEY
from natprec.utils.schema import Place, shown

CHECKSUM = "checksum"

LARGEST = 100_000_000
"""Bytes of JSON that are read: as many as safetensors allows a header, a plan of some 200,000 sites."""


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        keys: that say what it is; no other kind has any of them.
        source: how to come by one, which may name its `{path}`.
        again: what to do if it is damaged.
        inside: where a checkpoint has one.
    """

    name: str
    keys: frozenset[str]
    source: str
    again: str
    inside: str

    @property
    def one(self) -> str:
        """The name with its article."""
        return f"{'an' if self.name[0] in 'aeiou' else 'a'} {self.name}"

    def place(self, path: Path) -> Place:
        """The file as a whole, for errors."""
        return Place(f"{self.name} {str(path)!r}", f"correct it, or {self.again}")

    def is_at(self, path: Path) -> bool:
        """Whether a file looks like one of this kind; links are followed by nobody."""
        return not path.is_symlink() and path.is_file() and what_is(path) == self.one

    def missing(self, path: Path) -> InputError:
        """The error for a file that does not exist."""
        return InputError(f"{self.name} {str(path)!r} does not exist; {self.source.format(path=path)}")

    def another(self, path: Path) -> InputError:
        """The error for a file or folder that is none of this kind: says what it is."""
        found, remedy = what_is(path), self.source.format(path="FILE")
        if self.inside and (path / self.inside).is_file():
            remedy = f"give {str(path / self.inside)!r}"
        if found is None:
            return InputError(f"{str(path)!r} is no {self.name}; {remedy}")
        return InputError(f"{str(path)!r} is {found}, and {self.one} is wanted; {remedy}")

    def refuse_changed(
        self, value: dict[str, Any], versions: Collection[int], path: Path, beside: dict[str, Any] | None = None
    ) -> None:
        """Take the checksum out of what was read, if it has one; stop where it is not that of the content.

        Args:
            versions: of the schema that are read.
            beside: more that the checksum is of.
        Raises:
            InputError: another version, which may have another checksum; or another checksum.
        """
        version = value.get("version", 0)
        if type(version) is not int or version not in versions:
            raise InputError(
                f"{self.name} {str(path)!r} has version {shown(version)}; this natprec reads "
                f"{_listed(versions)}: {self.again}, or use the natprec that wrote it"
            )
        found = digest_of(value, beside)
        written = value.pop(CHECKSUM, found)
        if written != found:
            raise InputError(
                f"{self.name} {str(path)!r} is not what was written: its checksum is {shown(written)}, that of its "
                f"content is {found!r}; if you changed it on purpose take {CHECKSUM!r} out of it, else {self.again}"
            )


def _listed(versions: Collection[int]) -> str:
    """As a sentence lists them: 0, 1 and 2."""
    *others, last = map(str, versions)
    return f"{', '.join(others)} and {last}"


PLAN = Kind(
    "plan",
    frozenset({"eps_solved", "kl_predicted_ci95", "sites"}),
    "write it with natprec solve --out {path}",
    "solve again",
    "plan.json",
)
VERIFICATION = Kind(
    "verification",
    frozenset({"kl_mean", "kl_p99", "passed"}),
    "run natprec verify",
    "run natprec verify",
    "verification.json",
)
MEASUREMENT = Kind(
    "measurement",
    frozenset({"data_digest"}),
    "write it with natprec measure --out {path}",
    "measure again",
    "natprec/measurement.safetensors",
)
ENERGY = Kind(
    "run of natprec energy",
    frozenset({"idle_watts"}),
    "write it with natprec energy --out {path}",
    "run natprec energy again",
    "",
)
EVALUATION = Kind(
    "evaluation",
    frozenset({"lm_eval_version"}),
    "write it with natprec eval --out {path}",
    "run natprec eval again",
    "eval.json",
)
PUBLISHED = Kind(
    "record of a publication",
    frozenset({"repository"}),
    "natprec push writes it",
    "push again",
    "natprec/published.json",
)
PROGRESS = Kind(
    "resume file",
    frozenset({"fingerprint"}),
    "leave --resume out to start again",
    "leave --resume out to measure again",
    "",
)

_OTHERS = {
    "quantization_config": "the config.json of a quantized checkpoint",
    "model_type": "the config.json of a model",
    "weight_map": "an index of weights",
    "rows": "the report of a comparison",
    "producer": "natprec's list of what it wrote",
}
"""JSON with such a key."""


def read_json(path: Path, kind: Kind, versions: Collection[int]) -> dict[str, Any]:
    """The content of a JSON file of this kind, without its checksum.

    Raises:
        InputError: missing, too large, no JSON, of another kind or version, or changed since it was written.
    """
    if not path.exists():
        raise kind.missing(path)
    try:
        value = parsed(_bounded(path))
    except (OSError, ValueError) as error:
        if what_is(path) not in (None, kind.one):
            raise kind.another(path) from error
        raise InputError(f"{kind.name} {str(path)!r} cannot be read ({error}); {kind.again}") from error
    if not isinstance(value, dict) or not kind.keys & value.keys():
        raise kind.another(path)
    kind.refuse_changed(value, versions, path)
    return value


def parsed(content: str | bytes) -> Any:
    """JSON as its standard has it: no NaN, no key twice, no depth without end.

    Raises:
        ValueError: it is none.
    """
    return from_json(content, object_pairs_hook=_unique, parse_constant=_refused)


def sealed(value: dict[str, Any], beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is written: `value` and its checksum, which is of its version too, and of what lies `beside` it."""
    return {"version": value["version"], CHECKSUM: digest_of(value, beside)} | value


def digest_of(value: dict[str, Any], beside: dict[str, Any] | None = None) -> str:
    """16 hex digits of sha256 over what a file says, whatever its spelling, except for its checksum."""
    said = [{name: each for name, each in value.items() if name != CHECKSUM}, beside]
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:16]


def what_is(path: Path) -> str | None:
    """What a file or folder is, as far as natprec knows it."""
    if path.is_dir():
        quantized = (path / PLAN.inside).is_file()
        return "a checkpoint folder" if quantized else "a model" if (path / "config.json").is_file() else "a folder"
    if path.suffix == ".toml":
        return "a recipe"
    try:
        with path.open("rb") as file:
            start = file.read(9)
            if start[:4] == b"GGUF":
                return "a GGUF file"
            if start[8:] == b"{" and (size := int.from_bytes(start[:8], "little")) <= LARGEST:
                return _safetensors(parsed(b"{" + file.read(size - 1)))
        return _json(parsed(_bounded(path)))
    except (OSError, ValueError):
        return None


def _safetensors(header: dict[str, Any]) -> str:
    metadata = header.get("__metadata__") or {}
    if not isinstance(metadata, dict) or not isinstance(said := metadata.get(KEY), str):
        return "a file of weights (safetensors)"
    if not said.startswith("{"):
        return f"what natprec keeps for a later run ({shown(said)})"
    content = parsed(said)
    return MEASUREMENT.one if MEASUREMENT.keys & content.keys() else PROGRESS.one


def _json(value: Any) -> str | None:
    if not isinstance(value, dict):
        return None
    for kind in (PLAN, VERIFICATION, EVALUATION, ENERGY, PUBLISHED):
        if kind.keys & value.keys():
            return kind.one
    return next((what for key, what in _OTHERS.items() if key in value), None)


def _bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for name, each in pairs:
        if name in value:
            raise ValueError(f"it has the key {shown(name)} twice")
        value[name] = each
    return value


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no number of JSON")
