"""What GPTQ leaves, found by many processes: each unit of a stage is fitted by one of them.

The moments of a unit's inputs are added up at the process that fits it; all processes then learn what it found, which
is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from natprec.measurement.compensation import Compensation
from natprec.measurement.observers import WeightObserver
from natprec.quantizers.gptq import judged_rows
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
    """The moments of one unit and the gradients that judge it, at one process; what none came to stays unknown."""
    fitted, unit = members[0].fitted, members[0].site.unit
    counts = torch.zeros(workers.size, 1 + len(members), dtype=torch.int64)
    counts[workers.rank] = torch.tensor([unit in fitted, *(len(each.judging) for each in members)])
    (counts,) = workers.all_sum(counts)
    size = members[0].weight.shape[1]
    if counts[:, 0].any():
        nothing = torch.zeros(size, size, dtype=torch.float64, device=members[0].weight.device)
        workers.sum_at(owner, fitted.setdefault(unit, nothing))
    for each, judging in zip(members, counts[:, 1:].T.tolist(), strict=True):
        shape = (len(judged_rows(len(each.weight))), size)
        own = torch.stack(each.judging) if each.judging else each.weight.new_zeros(0, *shape, dtype=torch.float32)
        pieces = [own if rank == owner else own[:0] for rank in range(workers.size)]
        found = workers.exchange(pieces, [(count if workers.rank == owner else 0, *shape) for count in judging])
        each.judging = list(torch.cat(found))
    if workers.rank != owner:
        fitted.pop(unit, None)


def spread(done: Mapping[str, WeightObserver], workers: Workers) -> None:
    """Let all processes know what each found: what is left, and by which columns."""
    known = {name: each.compensation for name, each in done.items() if each.compensation is not None}
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
