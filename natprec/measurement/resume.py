"""The state that a killed measurement leaves behind, and how a later run continues from it.

The state is one file beside the output, replaced whole after each segment of the sweep. It carries a
fingerprint of everything that decides the numbers; a resumed run with another model, text, seed or
format list is refused rather than mixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor

from natprec.errors import InputError
from natprec.measurement.curves import Curve
from natprec.measurement.packing import pack_curves, read_arrays, unpack_curves
from natprec.measurement.weight_observer import WeightObserver
from natprec.utils.atomic_files import write_bytes
from natprec.utils.own_files import PROGRESS
from natprec.utils.schema import Called, Place, read


@dataclass(frozen=True)
class _Header:
    """What the file says of itself; attributes as those of `SweepState`."""

    fingerprint: dict[str, Any]
    segment: Annotated[int, Called("stage")]
    exact: list[str]
    sites: list[Any]


WORDS = {"products": "arithmetic", "formats": "format list"}
"""What a user calls a key of a fingerprint, where that is another word."""


@dataclass
class SweepState:
    """The state of an unfinished sweep: the gradient at the last finished segment's input, and the curves.

    Attributes:
        segment: the next segment to do, counting down from the suffix to -1; -2 when all are done.
        gradient: (sequences, time, hidden), gradient at the input of segment + 1.
        tied: of tied weights, between suffix and prefix: see `tied_state`.
        exact: names of sites whose forward curve the exact estimator has replaced.
    """

    segment: int
    gradient: Tensor | None
    curves: dict[str, Curve]
    tied: dict[str, Tensor]
    exact: set[str] = field(default_factory=set)


def save_state(path: Path, fingerprint: dict[str, Any], state: SweepState) -> None:
    """Write the state, atomically."""
    arrays, sites = pack_curves(state.curves.values())
    arrays = {f"curve|{name}": array for name, array in arrays.items()}
    arrays |= {f"tied|{name}": tensor.cpu().numpy() for name, tensor in state.tied.items()}
    if state.gradient is not None:
        arrays["gradient"] = state.gradient.cpu().numpy()
    header = {"fingerprint": fingerprint, "stage": state.segment, "exact": sorted(state.exact), "sites": sites}
    write_bytes(path, save(arrays, {"natprec": json.dumps(header)}), sync=False)


def load_state(path: Path, fingerprint: dict[str, Any]) -> SweepState | None:
    """The state of an earlier run of the same measurement; None when there is none.

    Raises:
        InputError: the state is of another measurement, or damaged.
    """
    if not path.exists():
        return None
    content, arrays = read_arrays(path, PROGRESS)
    place = Place(f"resume file {str(path)!r}", PROGRESS.again)
    header: _Header = read(_Header, content, place)
    refuse_other(path, header.fingerprint, fingerprint)

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    return SweepState(
        segment=header.segment,
        gradient=torch.from_numpy(arrays["gradient"]) if "gradient" in arrays else None,
        curves=unpack_curves(header.sites, part("curve|"), place),
        tied={name: torch.from_numpy(array) for name, array in part("tied|").items()},
        exact=set(header.exact),
    )


def refuse_other(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to go on from another measurement.

    Raises:
        InputError: names the first thing in which two identities differ.
    """
    for key, now in ours.items():
        if theirs.get(key) != now:
            then = _shown(theirs.get(key))
            raise InputError(
                f"cannot resume from {str(path)!r}: its {WORDS.get(key, key)} is {then}, now {_shown(now)}; "
                "give the same options as before, or leave --resume out to start again"
            )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else repr(value)


def tied_state(observers: dict[str, WeightObserver], known: dict[str, Tensor]) -> dict[str, Tensor]:
    """The statistics that tied weights carry from the suffix to the prefix: 'site|part' → tensor.

    Args:
        known: after the segment before, which stays so: it is large, and gathered from all processes once.
    """
    return {
        f"{name}|{part}": value
        for name, observer in observers.items()
        for part, value in (_of_site(name, known) or _carried(observer)).items()
    }


def load_tied(observers: dict[str, WeightObserver], tensors: dict[str, Tensor]) -> None:
    """The inverse of `tied_state`."""
    for name, observer in observers.items():
        own = _of_site(name, tensors)
        if own:
            _load(observer, own)


def _carried(observer: WeightObserver) -> dict[str, Tensor]:
    """Of one weight, complete at process 0; nothing if its matrix product has not been measured."""
    if observer.head_values is None or observer.head_energy is None:
        return {}
    samples = observer.samples
    kept = {"rows": observer.head_rows, "sampled": samples.rows, "standing": samples.standing}
    stacks = {name: torch.stack([each[sequence] for sequence in sorted(each)]) for name, each in kept.items()}
    gathered = {name: observer.sharding.gather(stack, at=0) for name, stack in stacks.items()}
    return {"values": observer.head_values, "energy": observer.head_energy, **gathered}


def _load(observer: WeightObserver, tensors: dict[str, Tensor]) -> None:
    """The inverse of `_carried`."""
    observer.head_values, observer.head_energy = tensors["values"], tensors["energy"]
    sharding, samples = observer.sharding, observer.samples
    observer.head_rows, samples.rows, samples.standing = (
        dict(zip(sharding.own, sharding.take(tensors[name]), strict=True)) for name in ("rows", "sampled", "standing")
    )


def _of_site(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Part → tensor, of those called 'site|part'."""
    return {key.removeprefix(name + "|"): value for key, value in tensors.items() if key.startswith(name + "|")}
