"""A whole token of a checkpoint, and what of it is no matrix product: attention, norms, calls, choosing the token."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from natprec.costs.model import Product
from natprec.costs.table import CostTable
from natprec.formats import activation
from natprec.runtime.kernels.linear import QuantizedWeight, QuantLinear
from natprec.runtime.load import Runnable

PROMPT, NEW = 16, 32
"""Tokens that are there, and tokens that are written."""


@torch.inference_mode()
def token_seconds(runnable: Runnable, cpu_time: bool, new: int = NEW) -> float:
    """Of one new token, the likeliest each time, after a short prompt."""
    clock = time.process_time if cpu_time else time.perf_counter
    vocabulary = int(runnable.model.config.get_text_config().vocab_size)
    at = torch.randint(vocabulary, (1, PROMPT), generator=torch.Generator().manual_seed(0)).to(runnable.device)
    past, begun = None, 0.0
    for step in range(new + 1):
        if step == 1:
            begun = clock()
        logits, past = runnable.read(at, past)
        at = logits.argmax(-1, keepdim=True)
    at.tolist()  # waits for a GPU
    return (clock() - begun) / new


def products_of(runnable: Runnable) -> list[Product]:
    """The products of one new token."""
    found = []
    for module in runnable.model.modules():
        if isinstance(module, QuantLinear):
            stored = module.stored
            layer = stored.layer if isinstance(stored, QuantizedWeight) else None
            inputs = activation(8) if layer and layer.int8_inputs else None
            found.append(Product(layer.format if layer else None, inputs, stored.rows, stored.columns, 1))
    return found


def products_microseconds(runnable: Runnable, table: CostTable) -> float:
    """What a table says of the products of one new token."""
    return sum(table.product(product).value for product in products_of(runnable))


def rest_of(
    runnables: Mapping[str, Runnable], model: str, model_digest: str, table: CostTable, cpu_time: bool, repeat: int
) -> dict[str, Any]:
    """A `[[rest]]` of a table: the mean over some checkpoints of what a token takes beside its products.

    Args:
        runnables: checkpoints of one model, by name; timed in turn.
        repeat: rounds.
    """
    times: dict[str, list[float]] = {name: [] for name in runnables}
    for _ in range(repeat):
        for name, runnable in runnables.items():
            times[name].append(token_seconds(runnable, cpu_time))
    left = [
        1e6 * statistics.median(times[name]) - products_microseconds(runnable, table)
        for name, runnable in runnables.items()
    ]
    return {
        "model": model, "model_digest": model_digest, "tokens": 1, "microseconds": statistics.fmean(left),
        "spread": _spread(left), "plans": len(left),
    }  # fmt: skip


def _spread(left: Sequence[float]) -> float:
    mean = statistics.fmean(left)
    return max(abs(each - mean) for each in left) / abs(mean) if mean else 0.0
