"""The `Measurement`: for every site and every candidate format, what each width costs.

One file holds it: a safetensors with six small arrays per site, and a JSON header with all that
a solver needs to know of the model, so that solving never opens the model again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from natprec.config import Measured
from natprec.errors import InputError
from natprec.files import write_bytes
from natprec.formats import Format, parse_activation, parse_format
from natprec.formats.engines import PROFILES
from natprec.marks import KEY
from natprec.measurement.curves import Curve
from natprec.measurement.defects import refuse_curve, refuse_unlike
from natprec.own_files import MEASUREMENT, Kind, parsed, sealed, what_is
from natprec.schema import Among, Count, From0, Place, Positive, Seed, read
from natprec.sites import Site
from natprec.statistics import bootstrap_interval
from natprec.texts.seen import NO_PIECES, Pieces

if TYPE_CHECKING:
    from natprec.solver.plan import Plan

VERSION = 7

WEIGHTS_ONLY = 6
"""The version before, after which the scales of activations changed: one of weights alone still means the same."""

_ARRAYS = ("forward", "backward", "energy", "shares", "kept", "alignment")
_PIECES = "pieces"


@dataclass(frozen=True, kw_only=True)
class Header(Measured):
    """What was measured, on what, beside the options that enter a measurement.

    Attributes:
        model: its name, without the folder where it lay; `model_digest` identifies its weights.
        data: name of the text; `text_digest`: of its file; None: it is none.
        data_digest: of the token ids; `sequences` × `length` tokens, of `parts` kinds of text.
        storage_dtype: of scales and of what stays unquantized: 'bfloat16', 'float16' or 'float32'.
        other_bytes: parameters that are no sites, in the storage dtype.
        carried_bytes: tokenizer and configuration files of the checkpoint.
        distortion: name of the one that all curves are in.
        rotation: the seed by which the model was rotated before; None: it was not.
        products: dtype of the operands of matrix products in the sweep.
        checks: rows of (site, format, Fisher estimate, exact value): the spot check of the estimator.
        seconds: per stage of measuring.
    """

    model: str
    model_digest: str
    data: str
    data_digest: str
    sequences: Positive
    length: Positive
    parts: Positive
    engine: Annotated[str, Among(tuple(PROFILES))]
    storage_dtype: Annotated[str, Among(("bfloat16", "float16", "float32"))]
    other_bytes: Count
    carried_bytes: Count
    checks: list[tuple[str, str, float, float]] = field(default_factory=list)
    seconds: dict[str, From0] = field(default_factory=dict)
    version: int = VERSION
    distortion: str = "kl"
    products: str = "float32"
    rotation: Seed | None = None
    text_digest: str | None = None

    def identity(self, formats: Iterable[Format]) -> dict[str, Any]:
        """All that decides the numbers: of two measurements that agree in it, one can stand for the other."""
        return {
            "version": self.version,
            "model": self.model_digest,
            **self.entering(),
            "products": self.products,
            "distortion": self.distortion,
            "data": self.data_digest,
            "parts": self.parts,
            "formats": sorted({fmt.name for fmt in formats}),
        }


@dataclass(frozen=True, eq=False)
class Measurement:
    """Curves by site name, in the model's order, and what they belong to; equal to itself alone.

    Attributes:
        pieces: hashes of the text that was measured on, so that none of it judges: see `natprec.texts.seen`.
    """

    header: Header
    curves: dict[str, Curve]
    pieces: Pieces = field(default_factory=NO_PIECES.copy)

    @property
    def weights(self) -> dict[str, Curve]:
        """Those of weights alone."""
        return {name: curve for name, curve in self.curves.items() if curve.site.kind == "weight"}

    def interval(self, name: str, column: int) -> tuple[float, float]:
        """95 % bootstrap interval of one site's forward KL under its format number `column`."""
        curve = self.curves[name]
        return bootstrap_interval(curve.samples(curve.formats[column]), self.header.seed)

    def solve(self, **options: Any) -> Plan:
        """The plan for a tolerance or a size: see `natprec.solver.solve`."""
        from natprec.solver import solve

        return solve(self, **options)

    def save(self, path: str | Path) -> None:
        """Write the file, atomically.

        Raises:
            InputError: a curve is none that could be read again: NaN, for one.
            OutputError: it cannot be written.
        """
        place = Place(f"what was measured of {self.header.model!r}", "check the model's weights and the text")
        for name, curve in self.curves.items():
            refuse_curve(curve, place.within("sites").at(name), self.header.distortion)
        arrays, sites = pack_curves(self.curves.values())
        arrays[_PIECES] = self.pieces
        header = sealed({**asdict(self.header), "sites": sites}, _digests(arrays))
        write_bytes(Path(path), save(arrays, {KEY: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read the file.

        Raises:
            InputError: missing, cut off, changed, no measurement, of another version, or what no model measures.
        """
        path = Path(path)
        content, arrays = read_arrays(path, MEASUREMENT)
        MEASUREMENT.refuse_changed(content, (WEIGHTS_ONLY, VERSION), path, _digests(arrays))
        place = Place(f"measurement {str(path)!r}", MEASUREMENT.again)
        sites = content.pop("sites", None)  # a list, in place of the header's own word
        header: Header = read(Header, content, place)
        if header.sequences % header.parts:
            raise place.within("sequences").wrong(f"are {header.sequences}, which {header.parts} parts do not divide")
        pieces = arrays.pop(_PIECES, NO_PIECES)
        if pieces.dtype != NO_PIECES.dtype or pieces.ndim != 1 or not bool((pieces[1:] > pieces[:-1]).all()):
            raise place.within(_PIECES).wrong("must be sorted hashes of 64 bits, each once")
        curves = unpack_curves(sites, arrays, place, header.distortion)
        flowing = any(curve.site.kind != "weight" for curve in curves.values())
        if header.version == WEIGHTS_ONLY and flowing:
            raise place.wrong(
                f"has version {WEIGHTS_ONLY}, in which activations had other scales; this natprec reads {VERSION}"
            )
        return cls(replace(header, sites="all" if flowing else "weights"), curves, pieces)


@dataclass(frozen=True, kw_only=True)
class _Described(Site):
    """A site, as the header has it."""

    formats: list[str]
    scaled: bool
    largest: tuple[From0, From0]
    tokens: Count | None


def pack_curves(curves: Iterable[Curve]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays for a safetensors file, and the description of their sites."""
    arrays: dict[str, np.ndarray] = {}
    sites = []
    for curve in curves:
        formats = [fmt.name for fmt in curve.formats]
        own = {"formats": formats, "scaled": curve.scaled, "largest": curve.largest, "tokens": curve.tokens}
        sites.append({**curve.site.to_json(), **own})
        for kind in _ARRAYS:
            arrays[f"{curve.site.name}|{kind}"] = np.ascontiguousarray(getattr(curve, kind))
    return arrays, sites


def unpack_curves(sites: Any, arrays: Mapping[str, np.ndarray], place: Place, distortion: str = "") -> dict[str, Curve]:
    """The inverse of `pack_curves`.

    Args:
        place: the file, for errors.
        distortion: the name of the one that the curves are in; empty: not known.
    Raises:
        InputError: no sites, one twice, an array that is missing or belongs to none, or a curve that cannot be.
    """
    curves: dict[str, Curve] = {}
    for described in read(list[_Described], sites, place.within("sites")):
        own = place.within("sites").at(described.name)
        if described.name in curves:
            raise own.wrong("is there twice")
        curves[described.name] = curve = _curve(described, arrays, own)
        refuse_curve(curve, own, distortion)
    if others := arrays.keys() - {f"{name}|{kind}" for name in curves for kind in _ARRAYS}:
        raise place.wrong(f"has an array {min(others)!r} that belongs to no site")
    refuse_unlike(list(curves.values()), place.within("sites"))
    return curves


def _curve(described: _Described, arrays: Mapping[str, np.ndarray], place: Place) -> Curve:
    parse = parse_format if described.kind == "weight" else parse_activation
    try:
        formats: tuple[Format, ...] = tuple(parse(name) for name in described.formats)
    except InputError as error:
        raise place.within("formats").wrong(f"cannot be read: {error}") from error
    missing = [kind for kind in _ARRAYS if f"{described.name}|{kind}" not in arrays]
    if missing:
        raise place.wrong(f"has no array {missing[0]!r}")
    return Curve(
        Site(**{each.name: getattr(described, each.name) for each in fields(Site)}),
        formats,
        **{kind: arrays[f"{described.name}|{kind}"] for kind in _ARRAYS},
        scaled=described.scaled,
        largest=described.largest,
        tokens=described.tokens,
    )


def _digests(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """What the checksum is of beside the header: of each array type, shape and sha256."""
    return {
        name: [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]
        for name, array in arrays.items()
    }


def read_arrays(path: Path, kind: Kind) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON header and the arrays of one of our safetensors files.

    Raises:
        InputError: with the cause: missing, damaged, or not of this kind.
    """
    if not path.exists():
        raise kind.missing(path)
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        content = parsed(metadata.get(KEY, "null"))
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if what_is(path) not in (None, f"a {kind.name}"):
            raise kind.another(path) from error
        raise InputError(f"{kind.name} {str(path)!r} is damaged or cut off ({error}); {kind.again}") from error
    if not isinstance(content, dict) or not kind.keys & content.keys():
        raise kind.another(path)
    return content, arrays
