"""The files that a report is made of: the checkpoint's own, and those of other commands that are of the same model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from natprec.benchmark.result import Evaluation
from natprec.energy.opening import files_digest
from natprec.energy.run import VERSION as ENERGY_VERSION
from natprec.errors import InputError
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import MEASUREMENT
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.utils.digests import changed
from natprec.utils.own_files import ENERGY, EVALUATION, parsed, read_json
from natprec.utils.schema import Place, read

_Pair = tuple[float, float]


@dataclass(frozen=True)
class Other:
    """A file of another command.

    Attributes:
        name: that it has beside a checkpoint.
        key: of its list; each row of that has at least `fields`.
    """

    what: str
    name: str
    key: str
    fields: dict[str, Any]


OTHERS = {
    "comparison": Other(
        "a comparison",
        "compare.json",
        "rows",
        {"method": str, "bits": int, "kl_mean": float, "kl_ci95": _Pair, "stored_bytes": int},
    ),
    "energy": Other("an energy measurement", "energy.json", "rows", {"phase": str, "batch": int}),
    "inspection": Other("an inspection", "inspection.json", "boundaries", {}),
}

LARGEST = 50_000_000
"""Bytes of another command's JSON that are read."""


@dataclass(frozen=True)
class Sources:
    """What a report shows; None where a file is not there.

    Attributes:
        title: name of the model.
        comparison: of `natprec compare`; `energy`, `inspection`: of energy and inspect.
        picture: graph.svg of an inspection.
        files: name → checksum or None, of the files that were read.
    """

    title: str
    plan: Plan
    verification: Verification | None
    measurement: Measurement | None
    comparison: dict[str, Any] | None
    energy: dict[str, Any] | None
    scores: Evaluation | None
    inspection: dict[str, Any] | None
    picture: str | None
    files: dict[str, str | None]


def gather(
    folder: Path,
    *,
    comparison: Path | None = None,
    energy: Path | None = None,
    scores: Path | None = None,
    inspection: Path | None = None,
    measured: bool = True,
) -> Sources:
    """Read them; what is not named is looked for beside the checkpoint.

    Args:
        folder: a checkpoint of natprec's.
        comparison: compare.json of `natprec compare`.
        inspection: folder or inspection.json of `natprec inspect --out`.
        measured: whether the measurement is shown, from which the page solves.
    Raises:
        InputError: a file is missing, damaged, of another kind or version, or of another model: names both digests.
    """
    plan = Plan.load(folder / "plan.json")
    verification, curves = folder / "verification.json", folder / MEASUREMENT
    measurement = Measurement.load(curves) if measured and curves.exists() else None
    if measurement is not None:
        _refuse_another(curves, measurement.header.model_digest, plan)
    judged = Verification.load(verification) if verification.exists() else None
    if judged is not None and judged.provenance is not None:
        _refuse_another(verification, judged.provenance.model_digest, plan)
    if inspection is not None and inspection.is_dir():
        inspection /= "inspection.json"
    given = {"comparison": comparison, "energy": energy, "inspection": inspection}
    found = {name: _json(OTHERS[name], given[name], folder, plan) for name in OTHERS}
    evaluation = _scores(scores, folder, plan)
    names = [folder / "plan.json", verification, *([curves] if measured else [])]
    names += [given[name] or folder / OTHERS[name].name for name, value in found.items() if value is not None]
    names += [scores or folder / EVALUATION.inside]
    drawn = None if inspection is None else inspection.with_name("graph.svg")
    return Sources(
        title=plan.model,
        plan=plan,
        verification=judged,
        measurement=measurement,
        scores=evaluation,
        picture=_picture(drawn) if drawn is not None and drawn.is_file() else None,
        files={each.name: _checksum(each) for each in names if each.is_file()},
        **found,
    )


def _scores(given: Path | None, folder: Path, plan: Plan) -> Evaluation | None:
    """Answers, if eval.json is named or lies beside the checkpoint; of these bytes and no others.

    Raises:
        InputError: see `gather`.
    """
    path = given or folder / EVALUATION.inside
    if given is None and not path.exists():
        return None
    found = Evaluation.load(path)
    _refuse_another(path, found.model_digest, plan)
    if found.files and (other := changed(found.files, folder)):
        raise InputError(
            f"{str(path)!r} is of another checkpoint: its {other[0]!r} is not the file in {str(folder)!r}; run natprec "
            "eval again"
        )
    return found


def _json(kind: Other, given: Path | None, folder: Path, plan: Plan) -> dict[str, Any] | None:
    """Its content, if it is named or lies beside the checkpoint."""
    path = given or folder / kind.name
    if not path.is_file():
        if given is not None:
            raise InputError(f"{str(path)!r} does not exist; name the JSON file of {kind.what}, or leave it out")
        return None
    place = Place(f"{kind.what} {str(path)!r}", "write it again")
    if path.stat().st_size > LARGEST:
        raise place.wrong(f"is larger than {LARGEST} bytes")
    try:
        value = read_json(path, ENERGY, (ENERGY_VERSION,)) if kind.name == "energy.json" else parsed(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not {kind.what} ({error}); write it again") from error
    if not isinstance(value, dict) or not isinstance(value.get(kind.key), list):
        raise InputError(f"{str(path)!r} is not {kind.what}: it has no list {kind.key!r}; give what the command wrote")
    if isinstance(digest := value.get("model_digest"), str):
        _refuse_another(path, digest, plan)
    if kind.name == "energy.json":
        _refuse_other_energy(path, value, folder)
    for number, each in enumerate(value[kind.key]):
        at = place.within(kind.key).at(number)
        row = read(dict[str, Any], each, at)
        if row.get("status", "ok") == "ok":
            for name, hint in kind.fields.items():
                read(hint, row.get(name), at.within(name))
    return value


def _refuse_other_energy(path: Path, value: dict[str, Any], folder: Path) -> None:
    """Of a run in this process the digest is that of the checkpoint's files; of a server nobody knows it."""
    ran = (value.get("run") or {}).get("model_digest")
    if isinstance(ran, str) and (folder / "config.json").is_file() and ran != (own := files_digest(folder)):
        raise InputError(
            f"{str(path)!r} is of a checkpoint whose files have digest {ran}, those of {str(folder)!r} have {own}; "
            "give the file that belongs to this checkpoint"
        )


def _refuse_another(path: Path, digest: str, plan: Plan) -> None:
    if not plan.is_of(digest):
        raise InputError(
            f"{str(path)!r} is of a model with weights {digest}, and the plan of {plan.model!r} with weights "
            f"{plan.model_digest}; give the file that belongs to this checkpoint"
        )


def _checksum(path: Path) -> str | None:
    if path.suffix != ".json":
        return None
    found = parsed(path.read_bytes())
    return found.get("checksum") if isinstance(found, dict) and isinstance(found.get("checksum"), str) else None


def _picture(path: Path) -> str:
    """A graph that `natprec inspect` drew; any other SVG may hold scripts.

    Raises:
        InputError: it is another's.
    """
    text = path.read_text(encoding="utf-8")
    allowed = ("svg", "rect", "text")
    tags = {part.lstrip("/").split(" ", 1)[0].split(">", 1)[0] for part in text.split("<")[1:]}
    if not tags <= set(allowed) or not text.startswith("<svg ") or " on" in text.replace(" on ", ""):
        raise InputError(f"{str(path)!r} is no picture of natprec inspect; write it again with natprec inspect --out")
    return text
