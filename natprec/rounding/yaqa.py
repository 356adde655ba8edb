"""YAQA through a model: GPTQ's moments, and those of the gradients at outputs; see `natprec.quantizers.yaqa`."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.quantizers import Extent, QuantizedTensor
from natprec.quantizers.gptq import gptq
from natprec.quantizers.hessian import Hessian
from natprec.quantizers.yaqa import output_order, yaqa
from natprec.rounding.moments import Gradients
from natprec.rounding.rounder import ByMoments


class YAQA(ByMoments):
    """Takes the gradients from both ways through the model, then goes as GPTQ does, which it is where none reach."""

    forwards, rounding = 6.0, 1.0

    def gathered(self) -> Gradients | None:
        """See `ByMoments.gathered`."""
        return self.run.gradients

    def weight(
        self,
        weight: Tensor,
        inputs: Hessian,
        errors: Tensor | None,
        fmt: Format,
        scale_dtype: torch.dtype,
        extent: Extent | None,
    ) -> QuantizedTensor:
        """See `ByMoments.weight`."""
        if errors is None:
            return gptq(weight, inputs, fmt, scale_dtype, extent)
        return yaqa(weight, inputs, output_order(errors), fmt, scale_dtype, extent)


ROUNDER = YAQA
