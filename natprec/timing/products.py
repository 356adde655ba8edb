"""A product with a made-up weight, on as many copies of it as no cache keeps until they are used again.

In a model all other weights come between two uses of one. What a kernel reads is packed as the runtime packs it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from natprec.costs.model import Product
from natprec.formats import Format
from natprec.quantizers import QuantizedTensor, quantize
from natprec.runtime.kernels.dispatch import choose
from natprec.runtime.kernels.kernel import Layer
from natprec.runtime.kernels.linear import HalfWeight, QuantizedWeight, QuantLinear, StoredWeight

MOST_COPIES = 256
MADE = 1 << 20
"""Weights that are rounded; the rows of larger ones are repeated."""


def made_up(fmt: Format, rows: int, columns: int) -> QuantizedTensor:
    """A weight (rows, columns) of random numbers, rounded to nearest; no kernel's time depends on the values."""
    count = max(1, min(rows, MADE // columns))
    if fmt.bits and rows % count:
        count = math.gcd(rows, count)
    weight = torch.randn(count, columns, generator=torch.Generator().manual_seed(0)) / math.sqrt(columns)
    value = quantize(weight, fmt, torch.bfloat16)
    times = rows // count
    zero = None if value.zero_point is None else value.zero_point.repeat(times, 1)
    return replace(value, codes=value.codes.repeat(times, 1), scale=value.scale.repeat(times, 1), zero_point=zero)


def stored_weight(product: Product, device: torch.device) -> StoredWeight:
    """The weight in the layout of its kernel.

    Raises:
        ModelError: no kernel runs it.
    """
    if product.weight is None:
        return HalfWeight(torch.randn(product.rows, product.columns).bfloat16(), device.type)
    layer = Layer(product.weight, product.rows, product.columns, product.inputs is not None)
    kernel, _ = choose(layer, device.type)
    return QuantizedWeight(made_up(product.weight, product.rows, product.columns), layer, kernel, torch.bfloat16)


def kernel_name(weight: StoredWeight) -> str:
    """What multiplies by it."""
    return weight.kernel.name if isinstance(weight, QuantizedWeight) else "half"


def copies(weight: StoredWeight, device: torch.device, working_set: float | None = None) -> list[nn.Module]:
    """So many that no cache keeps one until it is used again.

    Args:
        working_set: bytes that a whole model reads between two uses, where that is known and less.
    """
    size = sum(each.numel() * each.element_size() for each in weight.buffers()) or 1
    wanted = 2 * on_chip_bytes(device)
    if working_set is not None:
        wanted = min(wanted, working_set)
    count = min(MOST_COPIES, max(1, math.ceil(wanted / size)))
    return [QuantLinear(_copied(weight), None).to(device) for _ in range(count)]


def _copied(weight: StoredWeight) -> StoredWeight:
    """A copy with buffers of its own; those that oneDNN keeps cannot be copied in Python's way."""
    return copy.deepcopy(weight, {id(each): each.clone() for each in weight.buffers()})


def on_chip_bytes(device: torch.device, root: Path = Path("/sys/devices/system/cpu")) -> float:
    """Bytes of the last cache of a GPU, or of all caches of the CPUs.

    A weight that stays there from one step to the next need not be read from memory.
    """
    if device.type == "cuda":
        return float(getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0))
    total, seen = 0.0, set()
    for size in root.glob("cpu[0-9]*/cache/index[0-9]*/size"):
        key = (_text(size.with_name("level")), _text(size.with_name("type")), _text(size.with_name("shared_cpu_list")))
        text = _text(size)
        if key not in seen and text[:-1].isdigit() and key[1] != "Instruction":
            seen.add(key)
            total += int(text[:-1]) * {"K": 1024, "M": 1024**2}.get(text[-1], 0)
    return total


def _text(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
