"""GPTQ through a model: each block's second moments come from the rounded prefix; see `natprec.quantizers.gptq`."""

from __future__ import annotations

import torch
from torch import Tensor

from natprec.formats import Format
from natprec.quantizers import Extent, QuantizedTensor
from natprec.quantizers.gptq import gptq
from natprec.quantizers.hessian import Hessian
from natprec.rounding.rounder import ByMoments


class GPTQ(ByMoments):
    """Costs second moments, then propagation."""

    forwards, rounding = 2.0, 0.3

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
        return gptq(weight, inputs, fmt, scale_dtype, extent)


ROUNDER = GPTQ
