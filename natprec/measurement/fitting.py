"""What GPTQ leaves, found by many processes: each unit of a stage is fitted by one of them.

The moments of a unit's inputs are added up at the process that fits it; all processes then learn what it found, which
is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from natprec.measurement.compensation import Compensation
from natprec.measurement.observers import WeightObserver
from natprec.quantizers.gptq import InputOrder
from natprec.workers import Workers


def to_fit(done: Mapping[str, WeightObserver], workers: Workers) -> dict[str, WeightObserver]:
    """The observers of the units that this process fits, with the moments of all processes.

    A product of moments and the rounding of one column after the other both cost the square of the columns.
    """
    members: dict[str, list[Compensation]] = {}
    for observer in done.values():
        if observer.compensation is not None:
            members.setdefault(observer.site.unit, []).append(observer.compensation)
    owners = workers.assign({unit: len(own) * own[0].weight.shape[1] ** 2 for unit, own in members.items()})
    if workers.size > 1:
        for unit, own in members.items():
            _add_up(own, owners[unit], workers)
    return {name: each for name, each in done.items() if owners.get(each.site.unit, workers.rank) == workers.rank}


def _add_up(members: list[Compensation], owner: int, workers: Workers) -> None:
    """The moments of one unit, at one process; what no sequence of any process came to stays unknown."""
    fitted, unit = members[0].fitted, members[0].site.unit
    present = [unit in fitted, *(each.judging is not None for each in members)]
    (seen,) = workers.all_sum(torch.tensor(present, dtype=torch.int64))
    square = (members[0].weight.shape[1],) * 2

    def total(own: Tensor | None, *shape: int) -> Tensor:
        own = torch.zeros(shape, dtype=torch.float64, device=members[0].weight.device) if own is None else own
        workers.sum_at(owner, own)
        return own

    if seen[0]:
        own = fitted.get(unit)
        assert not isinstance(own, InputOrder)
        fitted[unit] = total(own, *square)
    for each, judged in zip(members, seen[1:], strict=True):
        each.sensitivity = total(each.sensitivity, len(each.weight))
        if judged:
            each.judging = total(each.judging, *square)
    if workers.rank != owner:
        fitted.pop(unit, None)
        for each in members:
            each.judging = None


def spread(done: Mapping[str, WeightObserver], fitted: Mapping[str, WeightObserver], workers: Workers) -> None:
    """Let all processes know what each left, and by which columns; `fitted` are those of this process."""
    known = {name: each.compensation for name, each in done.items() if each.compensation is not None}
    for name, each in known.items():
        if name in fitted:
            each.left = each.shares(done[name].formats, each.columns)
    if workers.size == 1 or not known:
        return
    rows = []
    for name, each in known.items():
        row = torch.zeros(1 + len(done[name].formats) + each.weight.shape[1], dtype=torch.float64)
        if each.left is not None:
            row[0] = each.columns is not None
            row[1 : 1 + len(each.left)] = each.left
        if each.columns is not None:
            row[1 + len(done[name].formats) :] = each.columns
        rows.append(row)
    for (name, each), row in zip(known.items(), workers.all_sum(*rows), strict=True):
        rescaled, each.left, columns = row.split([1, len(done[name].formats), each.weight.shape[1]])
        each.columns = columns.to(each.weight) if rescaled else None
