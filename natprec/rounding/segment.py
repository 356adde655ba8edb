"""One segment of a model rounded to a plan, while its weights are in memory.

Tied embeddings, those of many bits, and experts that no token reached, are rounded to nearest, the others by what is
known of their inputs (of an embedding, of the gradients at what it puts out) and, if it was gathered, of the gradients
at their outputs: how, is the rounding's own affair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError
from natprec.formats import Format
from natprec.models.layers import Layer
from natprec.models.segments import SegmentedModel
from natprec.models.weight_sites import Site, site_layer, site_weight
from natprec.quantizers import Extent, QuantizedTensor, quantize
from natprec.quantizers.hessian import Hessian
from natprec.rounding.moments import Moments
from natprec.rounding.together import codes_of_all, from_owner
from natprec.solver import Plan
from natprec.transforms import Gauge, channel_scales, fold

RoundWeight = Callable[[Tensor, Hessian, Tensor | None, Format, torch.dtype, Extent | None], QuantizedTensor]
"""Weight (rows, columns), its inputs, Σ g gᵀ (rows, rows) at its outputs or None, format, dtype of scales, its extent
if the format asks for that → codes."""


class SegmentRounder:
    """Rounds the sites of a plan; the model's weights become those that an engine reconstructs.

    Attributes:
        sites: those that the plan quantizes.
        dtype: of scales, and of everything that is not quantized.
        unrounded: where the weights that were rounded by moments are left, by site, for what learns afterwards.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        sites: Sequence[Site],
        plan: Plan,
        storage_dtype: torch.dtype,
        gauges: Mapping[str, Gauge] | None = None,
    ) -> None:
        """Arguments as for `natprec.rounding.apply.rounded_in_order`."""
        self._segmented, self._plan, self.dtype, self._gauges = segmented, plan, storage_dtype, gauges
        self.unrounded: dict[str, Tensor] | None = None
        self.sites = [site for site in sites if plan.sites[site.name].format is not None]
        self._twice: dict[str, QuantizedTensor] = {}  # tied weights, until their second use
        self._shared: dict[str, Tensor] = {}  # fused group → the largest magnitude of its weights
        self._quantized = {id(site_layer(segmented.model, site).weight) for site in self.sites}
        dtypes = segmented.weights.dtypes
        self._dtypes = {id(each): dtypes[name] for name, each in segmented.model.named_parameters() if name in dtypes}

    def store_the_rest(self, parameters: Iterable[nn.Parameter]) -> None:
        """Round what is not quantized to the dtype in which it is stored."""
        for parameter in parameters:
            if id(parameter) not in self._quantized:
                parameter.data = parameter.data.to(self._stored(parameter)).to(parameter.dtype)

    def _stored(self, parameter: Tensor) -> torch.dtype:
        return self._dtypes.get(id(parameter), self.dtype)

    def members(self, segment: int) -> list[Site]:
        """Sites of a segment whose errors a rounding can make up for."""
        return [site for site in self.sites if self.compensates(site) and site.segment == segment]

    def compensates(self, site: Site) -> bool:
        """Whether there is something to make up for a site's errors by."""
        return site.compensates(self._format(site))

    def to_nearest(self, segment: int, sites: Iterable[Site]) -> dict[str, QuantizedTensor]:
        """Those of some sites that the segment needs: tied weights in each segment that uses them."""
        codes = {}
        for site in sites:
            segments = {self._segmented.segment_of(use) for use in site.uses}
            if segment not in segments:
                continue
            if site.name in self._twice:
                codes[site.name] = self._put(site, self._twice.pop(site.name))
            else:
                codes[site.name] = self._nearest(site)
                if segment < max(segments):
                    self._twice[site.name] = codes[site.name]
        return codes

    def by_moments(
        self, segment: int, moments: Moments, round_weight: RoundWeight
    ) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
        """The segment's members, channels rescaled where the plan says so; of several processes each has its own part.

        Returns:
            Site name → codes, of all processes; site name → the weight that was rounded.
        Raises:
            ValueError: the plan rescales channels, and there are no gauges.
            InputError: it does where the model has none.
        """
        members = self.members(segment)
        of_group = {site.fused_group: site.damping for site in members}
        damping = [of_group[fused_group] for fused_group in moments.inputs]
        inputs = dict(zip(moments.inputs, Hessian.of_all(list(moments.inputs.values()), damping), strict=True))
        known = inputs.keys() | moments.elsewhere.keys()
        scaled = [
            site.fused_group for site in members if self._plan.sites[site.name].scaled and site.fused_group in known
        ]
        for fused_group in dict.fromkeys(scaled):
            layers = [site_layer(self._segmented.model, site) for site in members if site.fused_group == fused_group]
            rescaled = self._rescale(fused_group, layers, inputs.get(fused_group), moments)
            if rescaled is not None:
                inputs[fused_group] = rescaled
        unrounded = {site.name: site_weight(self._segmented.model, site).detach() for site in members}
        if self.unrounded is not None:
            self.unrounded |= unrounded
        codes = {}
        for site in members:
            weight, own = unrounded[site.name], inputs.get(site.fused_group)
            if site.fused_group in moments.elsewhere:
                continue
            if own is None:
                codes[site.name] = self._nearest(site)
            else:
                errors = moments.outputs.get(site.name)
                fmt, extent = self._format(site), self._extent(site)
                codes[site.name] = self._put(site, round_weight(weight, own, errors, fmt, self.dtype, extent))
        return self.shared(members, codes), unrounded

    def shared(self, members: Sequence[Site], codes: dict[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
        """The codes of some sites that processes have chosen, each its own, at all of them; the weights are these."""
        if not members:
            return codes
        formats = {site.name: self._format(site) for site in members}
        device = site_layer(self._segmented.model, members[0]).weight.device
        found = codes_of_all(self._segmented.workers, codes, formats, device)
        for site in members:
            if site.name not in codes:
                self._put(site, found[site.name])
        return found

    def _rescale(
        self, fused_group: str, layers: list[Layer], inputs: Hessian | None, moments: Moments
    ) -> Hessian | None:
        """Multiply the columns of a fused group, divide what produces its inputs; returns what its inputs are then.

        Args:
            inputs: None where another process has them.
        """
        if self._gauges is None:
            raise ValueError(f"the plan rescales {fused_group!r}: give the subject's gauges")
        if fused_group not in self._gauges:
            raise InputError(
                f"the plan rescales {fused_group!r}, whose input nothing in this model scales; solve again"
            )
        gauge, fmt, model = self._gauges[fused_group], self._plan.sites[fused_group].format, self._segmented.model
        assert fmt is not None
        producer: Any = model.get_submodule(gauge.producer)
        own = None if inputs is None else channel_scales([layer.matrix for layer in layers], inputs.cost, fmt, gauge)
        workers = self._segmented.workers
        rank = moments.elsewhere.get(fused_group, workers.rank)
        wanted = from_owner(workers, own, rank, layers[0].weight)
        scale = fold(model, gauge, wanted, self._stored(producer.weight))
        columns = scale[gauge.channels(layers[0].shape[1], scale.device)]
        for layer in layers:
            layer.put(layer.matrix * columns)
        moments.rescale_outputs(gauge.producer, scale)
        self.store_the_rest(producer.parameters())
        return None if inputs is None else inputs.scaled(columns)

    def _nearest(self, site: Site) -> QuantizedTensor:
        weight, fmt, extent = site_weight(self._segmented.model, site), self._format(site), self._extent(site)
        return self._put(site, quantize(weight, fmt, self.dtype, extent))

    def _extent(self, site: Site) -> Extent | None:
        """How far a weight reaches, and the weights that it is fused with: engines give these one outer scale.

        The first of them that is rounded asks, when all are still what they were.
        """
        fmt = self._format(site)
        if fmt.by_row:
            return None
        weight = site_weight(self._segmented.model, site)
        if fmt.scaling.outer is None or fmt.doubly_quantized:  # its scales are those of one weight
            return Extent.of(weight, [fmt])
        if site.fused_group not in self._shared:
            mates = [
                each for each in self.sites if each.fused_group == site.fused_group and each.segment == site.segment
            ]
            weights = [site_weight(self._segmented.model, each) for each in mates if self._format(each) == fmt]
            self._shared[site.fused_group] = torch.stack([Extent.of(each, [fmt]).largest for each in weights]).amax()
        return Extent.of(weight, [fmt], self._shared[site.fused_group])

    def _put(self, site: Site, value: QuantizedTensor) -> QuantizedTensor:
        """Leave what an engine reconstructs of a site in the model."""
        site_layer(self._segmented.model, site).put(value.dequantize())
        return value

    def _format(self, site: Site) -> Format:
        fmt = self._plan.sites[site.name].format
        assert fmt is not None
        return fmt
