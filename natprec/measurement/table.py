"""The `Measurement`: for every site and every candidate format, what each width costs.

One file holds it: a safetensors with six small arrays per site, and a JSON header with all that
a solver needs to know of the model, so that solving never opens the model again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from natprec.config import Measured
from natprec.errors import InputError
from natprec.files import write_bytes
from natprec.formats import Format, parse_activation, parse_format
from natprec.measurement.curves import Curve
from natprec.sites import Site
from natprec.statistics import bootstrap_interval
from natprec.texts.seen import NO_PIECES, Pieces

if TYPE_CHECKING:
    from natprec.solver.plan import Plan

VERSION = 7
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
    sequences: int
    length: int
    parts: int
    engine: str
    storage_dtype: str
    other_bytes: int
    carried_bytes: int
    checks: list[tuple[str, str, float, float]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    version: int = VERSION
    distortion: str = "kl"
    products: str = "float32"
    rotation: int | None = None
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
            OutputError: it cannot be written.
        """
        arrays, sites = pack_curves(self.curves.values())
        arrays[_PIECES] = self.pieces
        write_bytes(Path(path), save(arrays, {"natprec": json.dumps({**asdict(self.header), "sites": sites})}))

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read the file.

        Raises:
            InputError: missing, cut off, no measurement, or of another version.
        """
        path = Path(path)
        header, arrays = read_arrays(path, "measurement")
        version = header.get("version")
        if version != VERSION:
            raise InputError(
                f"measurement {str(path)!r} has version {version}; this natprec reads {VERSION}: measure again"
            )
        sites = header.pop("sites")
        header["checks"] = [tuple(row) for row in header["checks"]]
        return cls(Header(**header), unpack_curves(sites, arrays), arrays.get(_PIECES, NO_PIECES))


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


def unpack_curves(sites: list[dict[str, Any]], arrays: dict[str, np.ndarray]) -> dict[str, Curve]:
    """The inverse of `pack_curves`."""
    curves = {}
    for description in sites:
        parse = parse_format if description["kind"] == "weight" else parse_activation
        formats: tuple[Format, ...] = tuple(parse(name) for name in description["formats"])
        site = Site.from_json(
            {key: value for key, value in description.items() if key not in ("formats", "scaled", "largest", "tokens")}
        )
        values = {kind: arrays[f"{site.name}|{kind}"] for kind in _ARRAYS}
        curves[site.name] = Curve(
            site,
            formats,
            **values,
            scaled=description["scaled"],
            largest=tuple(description["largest"]),
            tokens=description["tokens"],
        )
    return curves


def read_arrays(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON header and the arrays of one of our safetensors files.

    Raises:
        InputError: with the cause: missing, damaged, or not ours.
    """
    if not path.is_file():
        raise InputError(f"{kind} file {str(path)!r} does not exist; write it with natprec measure --out {path}")
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{kind} file {str(path)!r} is damaged or cut off ({error}); measure again") from error
    if "natprec" not in metadata:
        raise InputError(
            f"{str(path)!r} is a safetensors file, but no natprec {kind}; give the output of natprec measure"
        )
    return json.loads(metadata["natprec"]), arrays
