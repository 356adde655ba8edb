"""Products timed in turn: in each round every format of a shape, so that a machine that slows down slows them all.

Of each product the median of the rounds is kept, and as spread half of the distance between their quartiles over it. A
round calls a product until some milliseconds have passed, and uses no copy of it twice. Between two uses of a copy come
as many bytes as a model reads for a token, or twice the last cache if that is less: so each weight comes from where a
model's would.

The runtime computes a token's products in one call, without Python between them. So a call's own time, that of a few
rows of the same weight, is taken off on the CPU: what calls there are belongs to the rest of a token.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from natprec.costs.model import UNQUANTIZED, Product
from natprec.errors import InputError
from natprec.formats import PerBlock
from natprec.runtime.kernels.linear import QuantLinear
from natprec.timing.products import copies, kernel_name, on_chip_bytes, stored_weight
from natprec.utils.progress import Stages

WARM_UP = 2
LEAST_CALLS = 2

FEW_ROWS, CALLS = 8, 50
"""Rows of a weight whose product takes no time, and calls that are timed together."""

LEAST_PART = 0.05
"""A product takes at least this part of its call, whatever the two clocks say."""


@dataclass(frozen=True)
class Settings:
    """How products are timed.

    Attributes:
        device: where; `repeat`: rounds; `milliseconds`: of each product in each.
        cpu_time: count this process's CPU time instead of the clock's; on a machine that others use.
        model_bytes: of the weights of the model that the table is for; None: more than any cache holds.
    """

    device: torch.device
    repeat: int = 15
    milliseconds: float = 3.0
    cpu_time: bool = False
    model_bytes: float | None = None

    def refuse_threads(self) -> None:
        """CPU time is what all threads take together.

        Raises:
            InputError: there are several, or a GPU.
        """
        if self.cpu_time and (self.device.type != "cpu" or torch.get_num_threads() != 1):
            raise InputError(
                f"cpu-time counts what all threads take, and torch has {torch.get_num_threads()} on {self.device}; "
                "set OMP_NUM_THREADS=1, or leave --cpu-time out"
            )


class Runner(Protocol):
    """A product that can be called."""

    kernel: str
    copies: int
    call: float
    """Seconds that a call takes beside the product."""

    def __call__(self, times: int) -> None:
        """Call it so often, each time on the next copy of the weight."""


class Natprec:
    """A product of natprec's runtime: its own kernels on the CPU, Triton's on a GPU."""

    def __init__(self, product: Product, settings: Settings, working_set: float) -> None:
        self.call = call_seconds(product, settings) if settings.device.type == "cpu" else 0.0
        weight = stored_weight(product, settings.device)
        self.kernel = kernel_name(weight)
        self._modules = copies(weight, settings.device, working_set)
        self.copies = len(self._modules)
        self._x = torch.randn(product.tokens, product.columns, device=settings.device)
        self._at = 0

    @torch.inference_mode()
    def __call__(self, times: int) -> None:
        """See `Runner`."""
        for _ in range(times):
            self._modules[self._at](self._x)
            self._at = (self._at + 1) % self.copies


@torch.inference_mode()
def call_seconds(product: Product, settings: Settings) -> float:
    """What a call takes with next to no weight."""
    by = product.weight and product.weight.scaling.granularity
    rows = by.rows if isinstance(by, PerBlock) else FEW_ROWS
    module = QuantLinear(stored_weight(replace(product, rows=rows, tokens=1), settings.device), None)
    x = torch.randn(1, product.columns)

    def call(times: int) -> None:
        for _ in range(times):
            module(x)

    call(WARM_UP)
    return statistics.median(seconds(call, CALLS, settings) / CALLS for _ in range(settings.repeat))


Make = Callable[[Product, Settings, float], Runner]
"""A product, settings and bytes of its copies → what runs it."""


def measure_times(
    products: Iterable[Product],
    settings: Settings,
    stages: Stages,
    make: Make = Natprec,
    known: Sequence[dict[str, Any]] = (),
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:
    """Rows of a table.

    Args:
        make: of an engine.
        known: rows that an interrupted run has measured.
        keep: told all rows after each shape.
    Raises:
        ModelError: no kernel runs a product.
    """
    rows = list(known)
    done = {_place(row) for row in rows}
    shapes: dict[tuple[int, int, int], list[Product]] = {}
    for product in dict.fromkeys(products):
        if (product.formats, product.rows, product.columns, product.tokens) not in done:
            shapes.setdefault((product.rows, product.columns, product.tokens), []).append(product)
    between = bytes_between(settings)
    for (height, width, tokens), several in sorted(shapes.items(), key=lambda each: each[0][0] * each[0][1]):
        lots = lots_of(several, between)
        with stages.stage(f"time {height} × {width}, {tokens} tokens", len(lots) * (settings.repeat + 1)) as advance:
            for lot in lots:
                rows += _measured(lot, settings, make, between / len(lot), advance)
        keep(rows)
    return rows


def bytes_between(settings: Settings) -> float:
    """Bytes that are read between two uses of one weight."""
    return min(2 * on_chip_bytes(settings.device), settings.model_bytes or math.inf)


def lots_of(several: Sequence[Product], between: float) -> list[list[Product]]:
    """Products to time in turn, so few that one copy of each takes no more than a model."""
    lots: list[list[Product]] = []
    held = math.inf
    for product in several:
        size = 2 * product.rows * product.columns
        if product.weight is not None:
            size = product.weight.stored_bytes(product.rows, product.columns)
        if held + size > between:
            lots.append([])
            held = 0
        lots[-1].append(product)
        held += size
    return lots


def _measured(
    several: Sequence[Product], settings: Settings, make: Make, share: float, advance: Callable[[str], None]
) -> list[dict[str, Any]]:
    runners = [make(product, settings, share) for product in several]
    counts = [_calls(runner, settings) for runner in runners]
    advance("warm")
    times: list[list[float]] = [[] for _ in runners]
    for round_number in range(settings.repeat):
        for index in range(len(runners)):
            at = (index + round_number) % len(runners)  # none is always behind the same other
            taken = seconds(runners[at], counts[at], settings) / counts[at]
            times[at].append(max(taken - runners[at].call, LEAST_PART * taken))
        advance("")
    return [
        {
            "weight": product.weight.name if product.weight else UNQUANTIZED,
            "inputs": product.inputs.name if product.inputs else UNQUANTIZED,
            "rows": product.rows, "columns": product.columns, "tokens": product.tokens,
            "microseconds": 1e6 * statistics.median(own), "spread": spread(own), "count": len(own) * calls,
            "kernel": runner.kernel,
        }
        for product, runner, own, calls in zip(several, runners, times, counts, strict=True)
    ]  # fmt: skip


def _calls(runner: Runner, settings: Settings) -> int:
    """Calls of a round."""
    runner(WARM_UP)
    one = max(1e-9, seconds(runner, LEAST_CALLS, settings) / LEAST_CALLS)
    return max(1, min(round(settings.milliseconds / 1000 / one), runner.copies))


def seconds(runner: Callable[[int], None], times: int, settings: Settings) -> float:
    """That so many calls take, on a GPU between two of its own events."""
    if settings.device.type == "cuda":
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(settings.device)
        start.record()
        runner(times)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1000
    clock = time.process_time if settings.cpu_time else time.perf_counter
    begun = clock()
    runner(times)
    return clock() - begun


def spread(times: Sequence[float]) -> float:
    """Half of the distance between the quartiles, over the median; 0 of fewer than two."""
    if len(times) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / 2 / middle if middle > 0 else 0.0


def _place(row: dict[str, Any]) -> tuple[str, int, int, int]:
    inputs = "" if row["inputs"] == UNQUANTIZED else f"/{row['inputs']}"
    return row["weight"] + inputs, row["rows"], row["columns"], row["tokens"]
