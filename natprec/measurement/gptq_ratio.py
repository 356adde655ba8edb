"""Predicts the fraction of a site's round-to-nearest distortion that remains after GPTQ's error compensation.

It follows from the second moments of the inputs, Σ x xᵀ, which sites with one input share (of a convolution: of the
patches of its input), and from gradients of the weight: see `gptq_shares`. GPTQ is fitted to three of four sequences
and judged on the fourth, one of those whose gradients are known. Where a fused group's channels can be rescaled (see
`natprec.transforms`), both ways are judged and the better one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from natprec.formats import Format
from natprec.models.layers import Layer
from natprec.models.patches import add_moments
from natprec.models.weight_sites import Site
from natprec.quantizers.gptq import Judged, gptq_shares, judged_groups, judged_rows
from natprec.quantizers.gram import mirrored
from natprec.quantizers.hessian import Hessian
from natprec.transforms import Gauge, Rescaled, all_channel_scales
from natprec.utils.launches import fetched

JUDGING = 4
"""Of so many sequences one judges what GPTQ, fitted to the others, leaves."""

DECIDING_BITS = 4
"""A fused group's channels are rescaled if that helps at this width, or the nearest measured."""

TOGETHER = 1.1
"""By so much more GPTQ's errors in all weights cost than one by one: found on two models (LOG.md), not derived."""


@dataclass
class Compensation:
    """Gathers at one weight what its inputs and gradients say of GPTQ.

    Attributes:
        fitted: fused group → Σ x xᵀ, `Layer.moments`, on and above the diagonal, shared by the sites of a sweep;
            float64, since it must not depend on how sequences are shared out.
        every: of so many sequences with gradients one judges.
        judging: of each sequence that judges, in order, the gradient of some rows, (rows, columns).
        rows: (judging rows,), their numbers, on the device of the weight.
        columns: (columns,), factors by which GPTQ finds the columns multiplied; None: as they are.
        left: (formats,), the share of rounding to nearest's distortion that GPTQ leaves; None: not decided.
    """

    site: Site
    layer: Layer
    scale_dtype: torch.dtype
    fitted: dict[str, Tensor]
    every: int = JUDGING
    judging: list[Tensor] = field(default_factory=list)
    rows: Tensor | None = None
    columns: Tensor | None = None
    left: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(rows, columns), as it is now."""
        return self.layer.matrix

    @property
    def judging_shape(self) -> tuple[int, int]:
        """Of each element of `judging`."""
        return len(judged_rows(self.site.shape[0], self.layer.groups)), self.site.shape[1]

    @property
    def gathers(self) -> bool:
        """True for the first site of a fused group; the others share its inputs, and so its moments."""
        return self.site.name == self.site.fused_group

    def attach(self, model: nn.Module) -> list[RemovableHandle]:
        """Fit to what the site's modules are given, whose rounding GPTQ compensates."""
        modules = [model.get_submodule(use) for use in self.site.uses]
        return [each.register_forward_pre_hook(lambda _, args: self.fit(args[0].detach())) for each in modules]

    def fit(self, inputs: Tensor, sequences: Sequence[int] | None = None) -> None:
        """Account for what the layer is given, unless another site gathers it.

        Args:
            inputs: (…, columns), or channels and places.
            sequences: the batch's indices; those that judge are left out.
        """
        if not self.gathers:
            return
        if sequences is not None:
            fitting = [number for number, sequence in enumerate(sequences) if not self._judges(sequence)]
            own = inputs.shape[-1 - self.layer.kind.dimensions :]
            inputs = inputs.reshape(len(sequences), -1, *own)
            if len(fitting) < len(sequences):  # by slices, whose places the CPU knows
                inputs = torch.cat([inputs[number : number + 1] for number in fitting]) if fitting else inputs[:0]
            inputs = inputs.flatten(0, 1)
        if inputs.numel():
            add_moments(self.fitted, self.site.fused_group, self.layer, inputs, torch.float64)

    def judge(self, gradient: Tensor, sequence: int) -> None:
        """Account for one sequence's gradient of the weight (rows, columns)."""
        if self._judges(sequence):
            self.judging.append(gradient[self._rows])

    def judge_all(self, gathered: Tensor, first: int, known: Sequence[int]) -> None:
        """The same of all of a process's sequences.

        Args:
            gathered: (sequences, rows, columns); their numbers begin with `first`.
            known: places of those that something came to.
        """
        judges = [place for place in known if self._judges(first + place)]
        if len(known) == len(gathered):
            start = -(first + 1) % self.every
            self.judging.extend(gathered[start :: self.every].index_select(1, self._rows))
        else:
            self.judging.extend(gathered[place][self._rows] for place in judges)

    def _judges(self, sequence: int) -> bool:
        return sequence % self.every == self.every - 1

    def judged(self) -> Judged:
        """Rows of the weight with what their errors count."""
        return Judged(self.weight[self._rows].float(), torch.stack(self.judging))

    def decided(self, formats: Sequence[Format], columns: Tensor | None, share: Tensor) -> None:
        """Take what was found.

        Args:
            columns: factors, see the attribute; `share`: (formats,), of what all weights leave one by one.
        """
        applies = torch.tensor([self.site.compensates(fmt) for fmt in formats])
        self.columns, self.left = columns, torch.where(applies, TOGETHER * share, 1.0)

    @property
    def _rows(self) -> Tensor:
        if self.rows is None:
            self.rows = judged_rows(self.site.shape[0], self.layer.groups).to(self.layer.weight.device)
        return self.rows


def deciding_format(formats: Sequence[Format], columns: int) -> int:
    """The place of the format at which it is decided whether to rescale: of the nearest width the smallest groups."""
    distance = [(abs(fmt.bits - DECIDING_BITS), -fmt.groups(columns)) for fmt in formats]
    return distance.index(min(distance))


@dataclass
class FusedGroup:
    """The sites of a fused group, which are decided on together.

    Attributes:
        formats: of all of them.
        nearest: of each member, (formats,), the distortion of rounding to nearest.
        gauge: where the fused group can be rescaled.
    """

    members: Sequence[Compensation]
    formats: Sequence[Format]
    nearest: Sequence[Tensor]
    gauge: Gauge | None


def decide(groups: Sequence[FusedGroup]) -> None:
    """Set what is left at all sites of fused groups, and how their columns are rescaled if less is left that way.

    The device is waited for three times, however many fused groups there are.
    """
    known, moments = [], []
    for each in groups:
        first = each.members[0]
        found = first.fitted.pop(first.site.fused_group, None)
        if found is None or not all(member.judging for member in each.members):  # nothing came to fit or to judge by
            for member in each.members:
                member.left = torch.ones(len(each.formats), dtype=torch.float64)
        else:
            known.append(each)
            if found.dim() == 3:
                found = found[judged_groups(len(found)).to(found.device)]
            moments.append(mirrored(found))  # in place of those in float64, which may be large
            del found
    if not known:
        return
    inputs = Hessian.of_all(moments, [each.members[0].site.damping for each in known])
    judged = [[member.judged() for member in each.members] for each in known]
    moments.clear()
    columns = _helpful_columns(known, judged, inputs)
    shares = fetched([
        gptq_shares(some, hessian, each.formats, each.members[0].scale_dtype, [scaling]).squeeze(1)
        for each, some, hessian, scaling in zip(known, judged, inputs, columns, strict=True)
    ])  # fmt: skip
    for each, scaling, found in zip(known, columns, shares, strict=True):
        for member, share in zip(each.members, found, strict=True):
            member.decided(each.formats, scaling, share)


def _helpful_columns(
    groups: Sequence[FusedGroup], judged: Sequence[Sequence[Judged]], inputs: Sequence[Hessian]
) -> list[Tensor | None]:
    """Of each fused group (columns,), the factors that leave less of its distortion, or None."""
    gauged = [number for number, each in enumerate(groups) if each.gauge is not None]
    places = {number: deciding_format(groups[number].formats, len(inputs[number].order)) for number in gauged}
    scales = all_channel_scales([
        Rescaled(
            [member.weight for member in groups[number].members], inputs[number].cost,
            groups[number].formats[places[number]], _gauge(groups[number]),
        )
        for number in gauged
    ])  # fmt: skip
    scalings, tried = {}, []
    for number, scale in zip(gauged, scales, strict=True):
        each = groups[number]
        scalings[number] = scale[_gauge(each).channels(len(inputs[number].order), scale.device)]
        formats, dtype = [each.formats[places[number]]], each.members[0].scale_dtype
        tried.append(gptq_shares(judged[number], inputs[number], formats, dtype, [None, scalings[number]]).squeeze(-1))
    found: list[Tensor | None] = [None] * len(groups)
    for number, shares in zip(gauged, fetched(tried), strict=True):
        nearest = torch.stack([kl[places[number]] for kl in groups[number].nearest]).unsqueeze(1)
        plain, scaled = (nearest * shares).sum(0)
        found[number] = scalings[number] if scaled < plain else None
    return found


def _gauge(group: FusedGroup) -> Gauge:
    assert group.gauge is not None
    return group.gauge
