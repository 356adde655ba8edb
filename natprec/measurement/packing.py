"""Curves as a safetensors file holds them: six small arrays per site, and a JSON header that describes the sites."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from natprec.errors import InputError
from natprec.formats import Format, parse_activation, parse_format
from natprec.measurement.curves import ARRAYS, Curve
from natprec.measurement.defects import refuse_curve, refuse_unlike
from natprec.models.weight_sites import Site
from natprec.utils.marks import KEY
from natprec.utils.own_files import Kind, parsed, what_is
from natprec.utils.schema import Count, From0, Place, read

_ARRAYS = ("forward", "backward", "energy", "shares", "kept", "alignment")


@dataclass(frozen=True, kw_only=True)
class _Described(Site):
    """A site, as the header has it."""

    formats: list[str]
    scaled: bool
    largest: tuple[From0, From0]
    tokens: Count | None
    by_head: tuple[tuple[From0, ...], tuple[From0, ...]] | None = None


def pack_curves(curves: Iterable[Curve]) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    """Arrays for a safetensors file, and the description of their sites."""
    arrays: dict[str, np.ndarray] = {}
    sites = []
    for curve in curves:
        formats = [fmt.name for fmt in curve.formats]
        own = {"formats": formats, "scaled": curve.scaled, "largest": curve.largest, "tokens": curve.tokens}
        heads = {} if curve.by_head is None else {"by_head": curve.by_head}
        sites.append({**curve.site.to_json(), **own, **heads})
        for kind, attribute in ARRAYS.items():
            arrays[f"{curve.site.name}|{kind}"] = np.ascontiguousarray(getattr(curve, attribute))
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
    if others := arrays.keys() - {f"{name}|{kind}" for name in curves for kind in ARRAYS}:
        raise place.wrong(f"has an array {min(others)!r} that belongs to no site")
    refuse_unlike(list(curves.values()), place.within("sites"))
    return curves


def _curve(described: _Described, arrays: Mapping[str, np.ndarray], place: Place) -> Curve:
    parse = parse_format if described.kind == "weight" else parse_activation
    try:
        formats: tuple[Format, ...] = tuple(parse(name) for name in described.formats)
    except InputError as error:
        raise place.within("formats").wrong(f"cannot be read: {error}") from error
    missing = [kind for kind in ARRAYS if f"{described.name}|{kind}" not in arrays]
    if missing:
        raise place.wrong(f"has no array {missing[0]!r}")
    return Curve(
        Site(**{each.name: getattr(described, each.name) for each in fields(Site)}),
        formats,
        **{attribute: arrays[f"{described.name}|{kind}"] for kind, attribute in ARRAYS.items()},
        scaled=described.scaled,
        largest=described.largest,
        tokens=described.tokens,
        by_head=described.by_head,
        learned=1.0,  # it stands in the header: see `Measurement.with_learned`
    )


def digests(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The type, shape and sha256 of each array, which enter the checksum beside the header."""
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
