"""The table of `natprec costs`: which products, timed by whom, and what is to be known of the machine beside them."""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from natprec.costs.model import Product
from natprec.costs.table import CostTable, parse_inputs, parse_weight
from natprec.costs.write import TIMES, save
from natprec.errors import InputError
from natprec.formats import Format, engine_profile
from natprec.formats.gpus import generation
from natprec.measurement import Measurement
from natprec.models.devices import usable_device
from natprec.models.hub import measurement_path
from natprec.runtime.load import load
from natprec.solver import Plan
from natprec.solver.objective import products_asked
from natprec.timing.measure import Make, Natprec, Settings, measure_times
from natprec.timing.vllm_layers import VllmLayer, process, refuse_absent
from natprec.timing.whole import rest_of
from natprec.utils.machine import clock_mhz, cpu_name
from natprec.utils.progress import Stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GROUP = 64
PACKAGES = ("natprec", "torch", "triton", "vllm")
_SHAPE = re.compile(r"([1-9]\d{0,6})[x×]([1-9]\d{0,6})")


@dataclass(frozen=True)
class Asked:
    """What the user wants timed; attributes as the options of `natprec costs`."""

    engine: str
    gpu: str | None
    device: str
    tokens: tuple[int, ...]
    repeat: int
    cpu_time: bool
    whole: tuple[Path, ...]
    measurement: Path | None
    formats: str | None
    shapes: str

    @property
    def target(self) -> torch.device:
        """Where products are timed: on the GPU where one is named.

        Raises:
            InputError: it is not there, or another one is.
        """
        wants = self.device if self.device != "cpu" or (self.gpu is None and self.engine == "natprec") else "cuda"
        if self.gpu is not None and not torch.cuda.is_available():
            raise InputError(
                f"gpu {self.gpu!r}: this machine has none that torch can use; leave --gpu out, or go there"
            )
        if self.engine == "vllm":
            refuse_absent(torch.device(wants))
        device = usable_device(wants)
        if self.gpu is not None:
            major, minor = torch.cuda.get_device_capability(device)
            if generation(self.gpu) != f"sm{10 * major + minor}":
                raise InputError(
                    f"gpu {self.gpu!r}: this machine's is {torch.cuda.get_device_name(device)!r}; name that one"
                )
        return device

    def products(self) -> list[Product]:
        """What is timed, each once.

        Raises:
            InputError: a format or shape that is none, or does not go together.
        """
        profile = engine_profile(self.engine)
        if self.measurement is not None:
            return products_asked(Measurement.load(measurement_path(self.measurement)), profile, self.tokens)
        pairs: list[tuple[Format | None, Format | None]] = [(None, None)]
        if self.formats is None:
            pairs += [(fmt, None) for fmt in profile.measured((GROUP,)) if fmt.symmetric]
        else:
            pairs = [_pair(name.strip()) for name in self.formats.split(",")]
        found = []
        for rows, columns in map(_shape, self.shapes.split(",")):
            for weight, inputs in pairs:
                if weight is not None and not profile.fits("linear", weight, rows, columns):
                    raise InputError(
                        f"format {weight.name!r}: its groups do not divide the {columns} inputs of shape "
                        f"{rows}x{columns}; leave one of them out"
                    )
                found += [Product(weight, inputs, rows, columns, tokens) for tokens in self.tokens]
        return list(dict.fromkeys(found))


def _pair(name: str) -> tuple[Format | None, Format | None]:
    weight, _, inputs = name.partition("/")
    return parse_weight(weight), parse_inputs(inputs) if inputs else None


def _shape(text: str) -> tuple[int, int]:
    match = _SHAPE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"shape {text!r}: give outputs x inputs, for example 4096x4096")
    return int(match[1]), int(match[2])


def time_table(asked: Asked, stages: Stages, out: Path | None, resume: bool) -> dict[str, Any]:
    """Time all, and write the table; what an interrupted run has measured lies in `OUT.partial`.

    Raises:
        InputError: what is asked for cannot be timed here.
    """
    device, products = asked.target, asked.products()
    settings = Settings(device, asked.repeat, cpu_time=asked.cpu_time, model_bytes=_model_bytes(asked))
    settings.refuse_threads()
    partial = None if out is None else out.with_name(out.name + ".partial")
    heading = _heading(asked, device)
    known = _known(partial, heading) if resume and partial is not None else []

    def keep(rows: list[dict[str, Any]]) -> None:
        if partial is not None:
            save({**heading, "rows": rows}, partial, TIMES)

    with _engine(asked.engine) as make:
        rows = measure_times(products, settings, stages, make, known, keep)
    table = {**heading, "clock_mhz": [*heading["clock_mhz"], *clock_mhz(device)], "rows": rows}
    if asked.whole:
        table["rest"] = [_rest(asked, settings, table, stages)]
    if out is not None:
        save(table, out, TIMES)
    if partial is not None:
        partial.unlink(missing_ok=True)
    return table


@contextlib.contextmanager
def _engine(name: str) -> Iterator[Make]:
    if name == "natprec":
        yield Natprec
    else:
        with process():
            yield VllmLayer


def _model_bytes(asked: Asked) -> float | None:
    """Of the model's weights at 4 bits."""
    if asked.measurement is None:
        return None
    return (
        sum(curve.site.elements for curve in Measurement.load(measurement_path(asked.measurement)).weights.values()) / 2
    )


def _heading(asked: Asked, device: torch.device) -> dict[str, Any]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {
        "source": "measured", "unit": "microseconds", "engine": asked.engine,
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None, "cpu": cpu_name(),
        "threads": torch.get_num_threads(), "clock": "CPU time" if asked.cpu_time else "wall",
        "clock_mhz": clock_mhz(device), "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions,
    }  # fmt: skip


def _known(partial: Path, heading: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an interrupted run.

    Raises:
        InputError: it was of another engine, machine or version.
    """
    if not partial.exists():
        return []
    CostTable.load(partial)  # refuses what is none
    content = tomllib.loads(partial.read_text("utf-8"))
    for key in ("engine", "gpu", "cpu", "threads", "clock", "versions"):
        if content.get(key) != heading[key]:
            raise InputError(
                f"{str(partial)!r} was begun with {key} {content.get(key)!r}, and it is {heading[key]!r} now; "
                "remove it, or leave --resume out"
            )
    rows: list[dict[str, Any]] = content["rows"]
    return rows


def _rest(asked: Asked, settings: Settings, table: dict[str, Any], stages: Stages) -> dict[str, Any]:
    """See `natprec.timing.whole`: of checkpoints of one model."""
    if asked.engine != "natprec":
        raise InputError(
            f"--whole runs checkpoints in natprec's runtime, and the engine is {asked.engine!r}; leave it out"
        )
    plans = {str(folder): Plan.load(folder / "plan.json") for folder in asked.whole}
    digests = {plan.model_digest for plan in plans.values()}
    if len(digests) > 1:
        raise InputError("--whole: the checkpoints are of several models; give those of one")
    first = next(iter(plans.values()))
    with stages.stage("time whole tokens"):
        runnables = {name: load(name, device=str(settings.device)) for name in plans}
        return rest_of(runnables, first.model, first.model_digest, _as_table(table), asked.cpu_time, asked.repeat)


def _as_table(table: dict[str, Any]) -> CostTable:
    """The rows as `natprec solve` would read them."""
    with tempfile.TemporaryDirectory(prefix="natprec-") as folder:
        file = Path(folder) / "costs.toml"
        save(table, file, TIMES)
        return CostTable.load(file)
