"""Joules of one product by format and shape, measured: a table of costs for `natprec solve --minimize joules`.

Each product runs on as many copies of its weight as no cache holds, as in a model, where all other weights come between
two uses of one. Estimates have no place here: two of them are never ranked.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.energy.counters import Found
from natprec.energy.footprint import on_chip_bytes
from natprec.energy.opening import Opened, open_model
from natprec.energy.protocol import Settings, describe, filled, machine_of, pace_of, recording
from natprec.energy.recorder import Clock
from natprec.energy.result import report
from natprec.energy.run import Part
from natprec.energy.window import cut_windows
from natprec.errors import InputError
from natprec.formats import CHANNEL, Format, integer
from natprec.models.layers import layer_of
from natprec.quantizers import quantize
from natprec.runtime.kernels.dispatch import choose
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.linear import HalfWeight, QuantizedWeight, QuantLinear, StoredWeight
from natprec.utils.atomic_files import write_bytes
from natprec.utils.progress import Stages

WIDTHS = range(2, 9)
GROUP = 64
MOST_COPIES = 256
PRODUCTS = 20
"""In a cycle, between two looks at the clock."""


@dataclass(frozen=True)
class Job:
    """One kind of product; `format` None: 16 bits."""

    format: Format | None
    int8_inputs: bool
    rows: int
    columns: int


class Products:
    """One product after the other, each on the next copy of the weight."""

    def __init__(self, copies: list[nn.Module], x: torch.Tensor) -> None:
        self.copies, self.x, self.at = copies, x, 0

    @torch.inference_mode()
    def cycle(self) -> Iterator[int]:
        """See `Work`: what is counted is products."""
        for _ in range(PRODUCTS):
            self.copies[self.at](self.x)
            self.at = (self.at + 1) % len(self.copies)
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)
        yield PRODUCTS


def measure_costs(name: str, settings: Settings, found: Found, stages: Stages) -> dict[str, Any]:
    """The table: a checkpoint's own formats, or those of a model's shapes from 2 to 8 bits, at each batch as tokens.

    Raises:
        InputError: there is no counter, or it gave no energy.
    """
    if found.live is None and found.file is None:
        why = "; ".join(f"{each.kind}: {each.reason}" for each in found.absent) or "--counter none"
        raise InputError(f"costs are measured, and there is no counter ({why}); give --counter nvml, rapl or FILE.csv")
    clock, device = Clock(), torch.device(settings.device)
    with stages.stage("load model"):
        jobs = jobs_of(open_model(name, settings.device, settings.trust_remote_code))
    pace = pace_of(settings, found, clock)
    parts: list[Part] = []
    kept: list[Job] = []
    with recording(found.live, clock) as recorder:
        for job in jobs:
            weight = stored_weight(job, device)
            for tokens in settings.batches:
                work = Products(copies(weight, device), torch.randn(tokens, job.columns, device=device))
                label = f"{_format(job)} {job.rows} × {job.columns}, {tokens} tokens"
                with stages.stage(label, settings.repeat) as advance:
                    windows = cut_windows(work, clock, recorder, pace, functools.partial(advance, ""))
                parts.append(Part("product", "decode", tokens, 1, 2, tuple(windows), _format(job)))
                kept.append(job)
    made = report(filled(describe(name, settings, parts, {}, machine_of(settings.device), found), found, recorder))
    rows = [
        {
            "weight": _format(job), "inputs": "int8" if job.int8_inputs else "float", "rows": job.rows,
            "columns": job.columns, "tokens": row["batch"], "joules": row["joules_per_token"],
            "joules_ci95": row["joules_per_token_ci95"], "seconds": 1 / row["tokens_per_second"], "cv": row["cv"],
        }
        for job, row in zip(kept, made["rows"], strict=True)
    ]  # fmt: skip
    missing = [row for row in made["rows"] if row["joules_per_token"] is None]
    if missing:
        raise InputError(f"{len(missing)} of {len(rows)} costs could not be measured: {missing[0]['refused']}")
    run = made["run"]
    return {
        "source": "measured", "unit": "joules", "engine": "natprec", "model": run["model"], "date": run["date"],
        "gpu": run["machine"]["gpu"], "cpu": run["machine"]["cpu"], "threads": run["machine"]["threads"],
        "counter": made["counter"]["kind"], "scope": made["counter"]["scope"], "versions": run["versions"],
        "rows": rows,
    }  # fmt: skip


def save(table: dict[str, Any], path: Path, first: str) -> None:
    """As TOML: the heading, then one `[[rows]]` for each product.

    Args:
        first: the first line, which says what the file is.
    """
    lines = [first]
    lines += [f"{key} = {_toml(value)}" for key, value in table.items() if key != "rows" and value is not None]
    for row in table["rows"]:
        lines += ["", "[[rows]]", *(f"{key} = {_toml(value)}" for key, value in row.items() if value is not None)]
    write_bytes(path, ("\n".join(lines) + "\n").encode())


def jobs_of(opened: Opened) -> list[Job]:
    """The products of a model, each once, the smallest first."""
    found: set[Job] = set()
    for module in opened.runnable.model.modules():
        if isinstance(module, QuantLinear):
            stored = module.stored
            layer = stored.layer if isinstance(stored, QuantizedWeight) else None
            found.add(
                Job(layer.format if layer else None, bool(layer and layer.int8_inputs), stored.rows, stored.columns)
            )
        elif (dense := layer_of(module)) is not None and not dense.kind.looks_up:
            rows, columns = dense.shape
            group = GROUP if columns % GROUP == 0 else CHANNEL
            found |= {Job(integer(bits, group), False, rows, columns) for bits in WIDTHS}
            found.add(Job(None, False, rows, columns))
    return sorted(found, key=lambda job: (job.rows * job.columns, job.rows, _format(job), job.int8_inputs))


def stored_weight(job: Job, device: torch.device) -> StoredWeight:
    """A made-up weight, packed as the runtime packs it."""
    weight = torch.randn(job.rows, job.columns, generator=torch.Generator().manual_seed(0)) / math.sqrt(job.columns)
    if job.format is None:
        return HalfWeight(weight.bfloat16(), device.type)
    layer = Layer(job.format, job.rows, job.columns, job.int8_inputs)
    kernel, _ = choose(layer, device.type)
    return QuantizedWeight(quantize(weight, job.format, torch.bfloat16), layer, kernel, torch.bfloat16)


def copies(weight: StoredWeight, device: torch.device) -> list[nn.Module]:
    """So many that no cache keeps one until it is used again."""
    size = sum(each.numel() * each.element_size() for each in weight.buffers()) or 1
    count = min(MOST_COPIES, max(1, math.ceil(2 * on_chip_bytes(device) / size)))
    return [QuantLinear(copy.deepcopy(weight), None).to(device) for _ in range(count)]


def _format(job: Job) -> str:
    return "bfloat16" if job.format is None else job.format.name


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return repr(value) if isinstance(value, float) else json.dumps(value)
