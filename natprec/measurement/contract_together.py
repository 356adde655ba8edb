"""Contracts the gradients of all weights of a finished segment, so that a device is waited for once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from natprec.measurement.fisher import products
from natprec.measurement.sharding import Sharding
from natprec.measurement.weight_observer import WeightObserver
from natprec.quantizers import rounding_errors
from natprec.quantizers.integer import CHUNK
from natprec.utils.launches import portion


def contract_together(observers: Sequence[WeightObserver], sharding: Sharding, terms: int) -> None:
    """Contract the gradients of all matrix products of a segment; small weights with as many columns are rounded
    together, and what comes of all of them is fetched from the device at once.
    """
    open_ones = [each for each in observers if each.gathered is not None]
    shared = _errors_of_small_ones(open_ones)
    sums = [each.sums(shared.get(id(each))) for each in open_ones]
    found = products([each for each in sums if each is not None], sharding.workers)
    for each, product in zip(open_ones, found, strict=True):
        each.finish_product(product, terms)


def _errors_of_small_ones(observers: Sequence[WeightObserver]) -> dict[int, Tensor]:
    """Observer's id → (formats + 1, rows, columns): its weight's rounding errors, of those rounded beside others."""
    alike: dict[tuple[object, ...], list[WeightObserver]] = {}
    for each in observers:
        if each.sharding.workers.size == 1 and all(fmt.by_row for fmt in each.formats):
            alike.setdefault((each.site.shape[1], each.formats, each.scale_dtype), []).append(each)
    found: dict[int, Tensor] = {}
    for several in alike.values():
        first, weights = several[0], [each.weight for each in several]
        count = len(first.formats) + 1
        small = portion(CHUNK * count, weights[0].device) // count
        if len(several) < 2 or sum(weight.numel() for weight in weights) > small:
            continue
        errors = rounding_errors(torch.cat(weights), first.formats, first.scale_dtype)
        errors = errors.view(count, -1, first.site.shape[1])
        for each, part in zip(several, errors.split([len(weight) for weight in weights], 1), strict=True):
            found[id(each)] = part
    return found
