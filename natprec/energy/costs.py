"""Joules of one product by format and shape, measured: a table of costs for `natprec solve --minimize joules`.

Each product runs on as many copies of its weight as no cache holds, as in a model, where all other weights come between
two uses of one. Estimates have no place here: two of them are never ranked. The file is one of `natprec.costs`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from natprec.costs.model import Product
from natprec.energy.counters import Found
from natprec.energy.opening import Opened, open_model
from natprec.energy.protocol import Settings, describe, filled, machine_of, pace_of, recording
from natprec.energy.recorder import Clock
from natprec.energy.result import report
from natprec.energy.run import Part
from natprec.energy.window import cut_windows
from natprec.errors import InputError
from natprec.formats import CHANNEL, activation, integer
from natprec.models.layers import layer_of
from natprec.runtime.kernels.linear import QuantizedWeight, QuantLinear
from natprec.timing.products import copies, stored_weight
from natprec.utils.progress import Stages

WIDTHS = range(2, 9)
GROUP = 64
PRODUCTS = 20
"""In a cycle, between two looks at the clock."""


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
    kept: list[Product] = []
    with recording(found.live, clock) as recorder:
        for job in jobs:
            weight = stored_weight(job, device)
            for tokens in settings.batches:
                work = Products(copies(weight, device), torch.randn(tokens, job.columns, device=device))
                label = f"{_weight(job)} {job.rows} × {job.columns}, {tokens} tokens"
                with stages.stage(label, settings.repeat) as advance:
                    windows = cut_windows(work, clock, recorder, pace, functools.partial(advance, ""))
                parts.append(Part("product", "decode", tokens, 1, 2, tuple(windows), _weight(job)))
                kept.append(job)
    made = report(filled(describe(name, settings, parts, {}, machine_of(settings.device), found), found, recorder))
    rows = [
        {
            "weight": _weight(job), "inputs": "int8" if job.inputs else "float", "rows": job.rows,
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


def jobs_of(opened: Opened) -> list[Product]:
    """The products of a model with one token, each once, the smallest first."""
    found: set[Product] = set()
    for module in opened.runnable.model.modules():
        if isinstance(module, QuantLinear):
            stored = module.stored
            layer = stored.layer if isinstance(stored, QuantizedWeight) else None
            inputs = activation(8) if layer and layer.int8_inputs else None
            found.add(Product(layer.format if layer else None, inputs, stored.rows, stored.columns, 1))
        elif (dense := layer_of(module)) is not None and not dense.kind.looks_up:
            rows, columns = dense.shape
            group = GROUP if columns % GROUP == 0 else CHANNEL
            found |= {Product(integer(bits, group), None, rows, columns, 1) for bits in WIDTHS}
            found.add(Product(None, None, rows, columns, 1))
    return sorted(found, key=lambda job: (job.rows * job.columns, job.rows, _weight(job), job.formats))


def _weight(job: Product) -> str:
    return "bfloat16" if job.weight is None else job.weight.name
