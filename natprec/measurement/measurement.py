"""The `Measurement`: for every site and every candidate format, what each width costs.

One file holds it: a safetensors with six small arrays per site, and a JSON header with all that
a solver needs to know of the model, so that solving never opens the model again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from safetensors.numpy import save

from natprec.config import Measured
from natprec.data.seen import NO_PIECES, Pieces
from natprec.formats import Format
from natprec.formats.engines import PROFILES
from natprec.formats.gpus import generation
from natprec.measurement.curves import Curve
from natprec.measurement.defects import refuse_curve
from natprec.measurement.packing import digests, pack_curves, read_arrays, unpack_curves
from natprec.models.weight_sites import Site
from natprec.utils.atomic_files import write_bytes
from natprec.utils.human import summary_html, summary_line
from natprec.utils.marks import KEY
from natprec.utils.own_files import MEASUREMENT, sealed
from natprec.utils.provenance import MeasuredText, Provenance, now, versions
from natprec.utils.schema import Among, Count, From0, Named, Place, Positive, Seed, read
from natprec.utils.statistics import bootstrap_interval

if TYPE_CHECKING:
    from natprec.solver.plan import Plan

VERSION = 7

WEIGHTS_ONLY = 6
"""The version before, after which the scales of activations changed: one of weights alone still means the same."""

_PIECES = "pieces"
_OF_A_GPU = ("gpu", "untested", "portable", "untied")


@dataclass(frozen=True, kw_only=True)
class Header(Measured):
    """The subject, text and formats of a measurement, and the options that enter it.

    Attributes:
        model: its name, without the folder where it lay; `model_digest` identifies its weights.
        data: name of the text; `text_digest`: of its file; None: it is none.
        data_digest: of the token ids; `sequences` × `length` tokens, of `parts` kinds of text.
        storage_dtype: of scales and of what stays unquantized: 'bfloat16', 'float16' or 'float32'.
        other_bytes: parameters that are no sites, in the storage dtype.
        carried_bytes: tokenizer and configuration files of the checkpoint, and the names of those parameters.
        distortion: name of the one that all curves are in.
        rotation: the seed by which the model was rotated before; None: it was not.
        device: what measured; of a GPU its model. Older files do not say.
        revision: the model's commit on the hub; None: it is not from there.
        source_bytes: of the weight files that were given; None: the model was in memory. `source_format`: the type of
            most weights where they are quantized already, such as Q4_1; else empty.
        products: dtype of the operands of matrix products in the sweep.
        gpu: the generation that was measured for, or 'any'; None: formats that do not depend on one; with it `untested`
            and `portable`, as `natprec.formats.engine_profile` has them.
        untied: the output head, where it was tied to the embedding and was measured apart; else empty.
        learned: of what GPTQ leaves, the part that learned rounding leaves in a few blocks, and its 95 % interval:
            see `natprec.rounding.pilot`. None: not measured.
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
    gpu: Annotated[str, Named(generation)] | None = None
    untested: bool = False
    portable: bool = False
    untied: str = ""
    device: str = ""
    revision: str | None = None
    source_bytes: Count | None = None
    source_format: str = ""
    learned: tuple[From0, From0, From0] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values; what concerns a GPU is there if one was named."""
        value = asdict(self)
        if self.gpu is None:
            for name in _OF_A_GPU:
                del value[name]
        if self.learned is None:
            del value["learned"]
        return value

    def provenance(self, command: str, device: str | None = None) -> Provenance:
        """The provenance of a file that is made from this measurement now.

        Args:
            command: that makes it, without paths; `device`: where, else where it was measured.
        """
        text = MeasuredText(self.data, self.text_digest, self.data_digest, self.sequences, self.length, self.parts)
        return Provenance(
            versions(),
            now(),
            command,
            self.device if device is None else device,
            self.seed,
            self.model,
            self.model_digest,
            self.revision,
            text,
        )

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
        pieces: hashes of the text that was measured on, so that none of it judges: see `natprec.data.seen`.
    """

    header: Header
    curves: dict[str, Curve]
    pieces: Pieces = field(default_factory=NO_PIECES.copy)

    def __repr__(self) -> str:
        return summary_line("Measurement", self._shown())

    def _repr_html_(self) -> str:
        return summary_html("measurement", self._shown())

    def _shown(self) -> dict[str, str]:
        """What a person wants to see first."""
        header = self.header
        return {
            "model": header.model,
            "sites": str(len(self.curves)),
            "formats": str(len({fmt for curve in self.curves.values() for fmt in curve.formats})),
            "engine": header.engine,
            "distortion": header.distortion,
            "text": f"{header.sequences * header.length} tokens of {header.data}",
        }

    @property
    def weights(self) -> dict[str, Curve]:
        """Those of weights alone."""
        return {name: curve for name, curve in self.curves.items() if curve.site.kind == "weight"}

    def with_learned(self, found: tuple[float, float, float] | None) -> Measurement:
        """The same with what learned rounding leaves of GPTQ's distortion: a ratio, and its interval."""
        curves = {
            name: replace(curve, learned=1.0 if found is None or not curve.site.learns else found[0])
            for name, curve in self.curves.items()
        }
        return replace(self, header=replace(self.header, learned=found), curves=curves)

    def interval(self, name: str, column: int) -> tuple[float, float]:
        """95 % bootstrap interval of one site's forward KL under its format number `column`."""
        curve = self.curves[name]
        return bootstrap_interval(curve.samples(curve.formats[column]), self.header.seed)

    def refuse_other_sites(self, sites: Iterable[Site], path: str | Path) -> None:
        """Stop where the weights measured are not those of the model.

        Args:
            path: of the file, for errors.
        Raises:
            InputError: names the first that differs.
        """
        theirs, ours = {name: curve.site for name, curve in self.weights.items()}, {site.name: site for site in sites}
        for name in theirs | ours:
            if theirs.get(name) != ours.get(name):
                how = "lacks" if name not in theirs else "has what is none" if name not in ours else "has another"
                raise Place(f"measurement {str(path)!r}", MEASUREMENT.again).wrong(
                    f"{how} of the model's weights: {name!r}"
                )

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
        header = sealed({**self.header.to_json(), "sites": sites}, digests(arrays))
        write_bytes(Path(path), save(arrays, {KEY: json.dumps(header)}))

    @classmethod
    def load(cls, path: str | Path) -> Measurement:
        """Read the file.

        Raises:
            InputError: missing, cut off, changed, no measurement, of another version, or what no model measures.
        """
        path = Path(path)
        content, arrays = read_arrays(path, MEASUREMENT)
        MEASUREMENT.refuse_changed(content, (WEIGHTS_ONLY, VERSION), path, digests(arrays))
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
        made = cls(replace(header, sites="all" if flowing else "weights"), curves, pieces)
        return made if header.learned is None else made.with_learned(header.learned)
