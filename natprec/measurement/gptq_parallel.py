"""Fits GPTQ ratios of a segment's fused groups: one process fits each, and all processes learn the result.

The moments of a fused group's inputs are added up at the process that fits it; what it finds is small.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from natprec.measurement.gptq_ratio import Compensation, FusedGroup, decide
from natprec.measurement.weight_observer import WeightObserver
from natprec.models.weight_sites import Site
from natprec.transforms import Gauge
from natprec.utils.workers import Workers


def to_fit(done: Mapping[str, WeightObserver], workers: Workers) -> dict[str, WeightObserver]:
    """The observers of the fused groups that this process fits, with the moments of all processes.

    A product of moments and the rounding of one column after the other both cost the square of the columns.
    """
    members: dict[str, list[Compensation]] = {}
    for observer in done.values():
        if observer.compensation is not None:
            members.setdefault(observer.site.fused_group, []).append(observer.compensation)
    owners = workers.assign({fused_group: len(own) * own[0].site.shape[1] ** 2 for fused_group, own in members.items()})
    if workers.size > 1 and members:
        counts = workers.all_sum(*(_had(own, workers) for own in members.values()))
        for (fused_group, own), had in zip(members.items(), counts, strict=True):
            narrow = all(each.wire == torch.bfloat16 for each in done.values() if each.site.fused_group == fused_group)
            _add_up(own, had, owners[fused_group], workers, torch.bfloat16 if narrow else torch.float32)
    return {
        name: each for name, each in done.items() if owners.get(each.site.fused_group, workers.rank) == workers.rank
    }


def _had(members: list[Compensation], workers: Workers) -> Tensor:
    """(processes, 1 + members), int64: this process's row of a fused group, moments or none, gradients that judge."""
    counts = torch.zeros(workers.size, 1 + len(members), dtype=torch.int64)
    first = members[0]
    counts[workers.rank] = torch.tensor(
        [first.site.fused_group in first.fitted, *(len(each.judging) for each in members)]
    )
    return counts


def _add_up(members: list[Compensation], had: Tensor, owner: int, workers: Workers, wire: torch.dtype) -> None:
    """The moments of one fused group and the gradients that judge it, at one process; what none came to stays unknown.

    Args:
        had: what each process has of them, see `_had`.
        wire: a dtype in which the gradients are exact.
    """
    fitted, fused_group = members[0].fitted, members[0].site.fused_group
    if had[:, 0].any():
        nothing = torch.zeros(members[0].layer.moments, dtype=torch.float64, device=members[0].layer.weight.device)
        workers.sum_at(owner, fitted.setdefault(fused_group, nothing))
    for each, judging in zip(members, had[:, 1:].T.tolist(), strict=True):
        shape = each.judging_shape
        own = torch.stack(each.judging) if each.judging else each.layer.weight.new_zeros(0, *shape, dtype=torch.float32)
        pieces = [own if rank == owner else own[:0] for rank in range(workers.size)]
        found = workers.exchange(pieces, [(count if workers.rank == owner else 0, *shape) for count in judging], wire)
        each.judging = list(torch.cat(found))
    if workers.rank != owner:
        fitted.pop(fused_group, None)


def spread(done: Mapping[str, WeightObserver], workers: Workers) -> None:
    """Let all processes know what each found: what is left, and by which columns."""
    known = {name: each.compensation for name, each in done.items() if each.compensation is not None}
    if workers.size == 1 or not known:
        return
    rows = []
    for name, each in known.items():
        row = torch.zeros(1 + len(done[name].formats) + each.site.shape[1], dtype=torch.float64)
        if each.left is not None:
            row[0] = each.columns is not None
            row[1 : 1 + len(each.left)] = each.left
        if each.columns is not None:
            row[1 + len(done[name].formats) :] = each.columns
        rows.append(row)
    for (name, each), row in zip(known.items(), workers.all_sum(*rows), strict=True):
        rescaled, each.left, columns = row.split([1, len(done[name].formats), each.site.shape[1]])
        each.columns = columns.to(each.layer.weight) if rescaled else None


def judge_fused_groups(done: Mapping[str, WeightObserver], gauges: Mapping[str, Gauge]) -> None:
    """Find for each fused group of a finished segment what GPTQ will leave, its channels rescaled or not."""
    groups = []
    for fused_group in {each.site.fused_group: None for each in done.values()}:
        members = {name: each.compensation for name, each in done.items() if each.site.fused_group == fused_group}
        together = [member for member in members.values() if member is not None]
        if not together:
            continue
        gauge = gauges.get(fused_group)
        if gauge is not None and any(done[name].lossless() for name in members):
            gauge = None  # rescaled, the weight would leave its grid
        nearest = [done[name].nearest() for name in members]
        groups.append(FusedGroup(together, done[fused_group].formats, nearest, gauge))
    # on a CPU there is nothing to wait for, and one after the other they take less memory
    one_by_one = bool(groups) and groups[0].members[0].layer.weight.is_cpu
    for some in [[each] for each in groups] if one_by_one else [groups]:
        decide(some)


def divided_columns(site: Site, done: Mapping[str, WeightObserver], gauges: Mapping[str, Gauge]) -> Tensor | None:
    """By what an activation's features are divided before GPTQ, if at all; those of values as their reader's.

    What produces values is a layer inside of the attention with as many outputs; others there (MLA's) produce none.
    """
    inside = [
        gauge
        for gauge in gauges.values()
        if site.kind == "value" and gauge.producer.startswith(site.uses[0] + ".")
        if gauge.produced == site.elements and gauge.producer in done
    ]
    reader = done.get(inside[-1].fused_group if inside else site.fused_group)
    if reader is None or reader.compensation is None or reader.compensation.columns is None:
        return None
    columns = reader.compensation.columns
    if not inside:
        return columns
    produced = columns.new_ones(inside[-1].produced)
    produced[inside[-1].channels(len(columns), columns.device)] = columns
    return produced
