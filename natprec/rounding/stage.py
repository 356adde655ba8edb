"""One stage of a model rounded to a plan, while its weights are in memory.

Sites without a matrix-product input of their own in the stage (embeddings), and experts that no token reached, are
rounded to nearest, the others by what is known of their inputs: by GPTQ, or where gradients of their outputs were
gathered too, by YAQA.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError
from natprec.models.layers import Layer
from natprec.quantizers import QuantizedTensor, quantize
from natprec.quantizers.gptq import gptq
from natprec.quantizers.input_order import InputOrder
from natprec.quantizers.yaqa import output_order, yaqa
from natprec.rounding.moments import Moments
from natprec.sites import Site, site_layer, site_weight
from natprec.solver import Plan
from natprec.staged.blocks import StagedModel
from natprec.transforms import Gauge, channel_scales, fold


class StageRounder:
    """Rounds the sites of a plan; the model's weights become those that an engine reconstructs.

    Attributes:
        sites: those that the plan quantizes.
    """

    def __init__(
        self,
        staged: StagedModel,
        sites: Sequence[Site],
        plan: Plan,
        storage_dtype: torch.dtype,
        gauges: Mapping[str, Gauge] | None = None,
    ) -> None:
        """Arguments as for `apply_plan`."""
        self._staged, self._plan, self._dtype, self._gauges = staged, plan, storage_dtype, gauges
        self.sites = [site for site in sites if plan.sites[site.name].format is not None]
        self._quantized = {id(site_layer(staged.model, site).weight) for site in self.sites}
        dtypes = staged.weights.dtypes
        self._dtypes = {id(each): dtypes[name] for name, each in staged.model.named_parameters() if name in dtypes}

    def store_the_rest(self, parameters: Iterable[nn.Parameter]) -> None:
        """Round what is not quantized to the dtype in which it is stored."""
        for parameter in parameters:
            if id(parameter) not in self._quantized:
                parameter.data = parameter.data.to(self._stored(parameter)).to(parameter.dtype)

    def _stored(self, parameter: Tensor) -> torch.dtype:
        return self._dtypes.get(id(parameter), self._dtype)

    def members(self, stage: int) -> list[Site]:
        """Sites of a stage whose inputs GPTQ can know."""
        return [site for site in self.sites if site.gptq and site.stage == stage]

    def to_nearest(self, stage: int, sites: Iterable[Site]) -> dict[str, QuantizedTensor]:
        """Those of some sites that the stage needs: tied weights that come from disk in each stage that uses them."""
        codes = {}
        for site in sites:
            again = not self._staged.weights.whole and stage in {self._staged.stage_of(use) for use in site.uses}
            if site.stage == stage or again:
                codes[site.name] = self._put(site, None, None)
        return codes

    def by_moments(self, stage: int, moments: Moments) -> tuple[dict[str, QuantizedTensor], dict[str, Tensor]]:
        """The stage's members, channels rescaled where the plan says so.

        Returns:
            Site name → codes; site name → the weight that was rounded.
        Raises:
            ValueError: the plan rescales channels, and there are no gauges.
            InputError: it does where the model has none.
        """
        members = self.members(stage)
        inputs = {unit: InputOrder.of(moment) for unit, moment in moments.inputs.items()}
        scaled = [site.unit for site in members if self._plan.sites[site.name].scaled and site.unit in inputs]
        for unit in dict.fromkeys(scaled):
            layers = [site_layer(self._staged.model, site) for site in members if site.unit == unit]
            inputs[unit] = self._rescale(unit, layers, inputs[unit], moments)
        unrounded = {site.name: site_weight(self._staged.model, site).detach() for site in members}
        codes = {site.name: self._put(site, inputs.get(site.unit), moments.outputs.get(site.name)) for site in members}
        return codes, unrounded

    def _rescale(self, unit: str, layers: list[Layer], inputs: InputOrder, moments: Moments) -> InputOrder:
        """Multiply the columns of a unit, divide what produces its inputs; returns what its inputs are then."""
        if self._gauges is None:
            raise ValueError(f"the plan rescales {unit!r}: give the subject's gauges")
        if unit not in self._gauges:
            raise InputError(f"the plan rescales {unit!r}, whose input nothing in this model scales; solve again")
        gauge, fmt, model = self._gauges[unit], self._plan.sites[unit].format, self._staged.model
        assert fmt is not None
        producer: Any = model.get_submodule(gauge.producer)
        wanted = channel_scales([layer.matrix for layer in layers], inputs.cost, fmt, gauge)
        scale = fold(model, gauge, wanted, self._stored(producer.weight))
        columns = scale[gauge.channels(layers[0].shape[1]).to(scale.device)]
        for layer in layers:
            layer.put(layer.matrix * columns)
        moments.rescale_outputs(gauge.producer, scale)
        self.store_the_rest(producer.parameters())
        return inputs.scaled(columns)

    def _put(self, site: Site, inputs: InputOrder | None, errors: Tensor | None) -> QuantizedTensor:
        fmt = self._plan.sites[site.name].format
        layer = site_layer(self._staged.model, site)
        weight = layer.matrix
        assert fmt is not None
        if inputs is None:
            value = quantize(weight, fmt, self._dtype)
        elif errors is None:
            value = gptq(weight, inputs, fmt, self._dtype)
        else:
            value = yaqa(weight, inputs, output_order(errors), fmt, self._dtype)
        layer.put(value.dequantize())
        return value
