"""The data block of a report: every number that the page shows, as it stands in the files it comes from."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from natprec.distortions import named
from natprec.inspection.report import budget
from natprec.measurement import Curve
from natprec.reporting.sources import Sources
from natprec.reporting.staircase import staircase_data
from natprec.solver.choices import Choice

SCHEMA = 1

_BLOCK = re.compile(r"(?:^|\.)(\d+)(?=\.)")
_EXPERT = re.compile(r"(?<=\.)\d+(?=\.|$)")


def data_of(sources: Sources) -> dict[str, Any]:
    """Plain values, in a fixed order: equal files give an equal block."""
    plan, measurement = sources.plan, sources.measurement
    curves = {} if measurement is None else measurement.curves
    distortion = named(plan.distortion)
    return {
        "schema": SCHEMA,
        "title": sources.title,
        "distortion": {"name": plan.distortion, "label": distortion.label, "unit": distortion.unit},
        "plan": {name: value for name, value in plan.to_json().items() if name not in ("version", "sites", "inputs")},
        "natural_bits": plan.natural_bits,
        "widths": plan.histogram(),
        "budget": budget(plan),
        "verification": None if sources.verification is None else asdict(sources.verification),
        "sites": [_site(name, choice, curves.get(name)) for name, choice in plan.sites.items()],
        "inputs": {name: choice.to_json() for name, choice in plan.inputs.items()},
        "stairs": None if measurement is None else staircase_data(measurement, plan),
        "checks": [] if measurement is None else [list(each) for each in measurement.header.checks],
        "measured": None if measurement is None else _header(measurement.header),
        "comparison": sources.comparison,
        "energy": sources.energy,
        "scores": None if sources.scores is None else sources.scores.to_json(),
        "inspection": None if sources.inspection is None else _inspected(sources.inspection),
        "files": sources.files,
    }


def place_of(name: str) -> tuple[int | None, str]:
    """(block, kind) of a site: `model.layers.7.mlp.experts.3.up_proj` is an `experts.*.up_proj` of block 7."""
    found = _BLOCK.search(name)
    if found is None:
        return None, name.rpartition(".")[2] or name
    rest = name[found.end() + 1 :]
    parts = _EXPERT.sub("*", rest).split(".")
    return int(found[1]), ".".join(parts[-3:] if "*" in parts[-2:] else parts[-1:])


def _site(name: str, choice: Choice, curve: Curve | None) -> dict[str, Any]:
    block, kind = place_of(name)
    return {"name": name, "block": block, "kind": kind, **choice.to_json(), "curve": _curve(curve)}


def _curve(curve: Curve | None) -> dict[str, Any] | None:
    """The distortion of each format by rounding to nearest, and the share of the gradient that it loses."""
    if curve is None or not curve.formats:
        return None
    energy = float(curve.energy.mean())
    backward = (curve.backward.mean(0) / energy).tolist() if energy else None
    return {
        "formats": [fmt.name for fmt in curve.formats],
        "bits": [fmt.bits for fmt in curve.formats],
        "nearest": [_rounded(value) for value in curve.kl("rtn")],
        "gptq": [_rounded(value) for value in curve.kl("gptq")],
        "backward": None if backward is None else [_rounded(value) for value in backward],
        "unquantized": curve.unquantized_kl,
    }


def _rounded(value: float) -> float:
    """Six digits: what a hover shows, in a file that has them for every site and format."""
    return float(f"{value:.6g}")


def _header(header: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(header).items() if name not in ("checks", "seconds")}


def _inspected(inspection: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of an inspection, whose list of all values is long."""
    names = ("totals", "budget", "entropy_orders_b_star", "captured_by", "eps", "eps_bwd", "kelvin", "notes")
    return {name: inspection.get(name) for name in names}
