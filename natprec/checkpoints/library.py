"""Dense weights as the compressed-tensors library reconstructs them, in float32.

The judge's way, beside natprec's own (`natprec.checkpoints.code_reader`). The library would round NVFP4's weights to
bfloat16 once more, which no engine does; so its own unpacking and dequantizing are called with float32.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from natprec.models.stored_codes import in_library_order
from natprec.models.stored_config import Group


def dense_weight(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """One weight, (rows, columns), in the dtype of its scales or float32.

    Args:
        group: of its module.
        tensors: those of the module whose names begin with `weight`, by the last part of their names.
    """
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
    from compressed_tensors.quantization import QuantizationScheme
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    own, scheme = dict(tensors), QuantizationScheme.model_validate(group.described)
    if own["weight_scale"].dtype in (torch.bfloat16, torch.float16, torch.float8_e4m3fn):
        own["weight_scale"] = own["weight_scale"].float()
    if "weight_zero_point" in own:
        own["weight_zero_point"] = in_library_order(own["weight_zero_point"])
    if "weight_global_scale" in own:
        rows, half = own["weight_packed"].shape
        values = unpack_fp4_from_uint8(own["weight_packed"], rows, 2 * half, torch.float32)
        outer = own["weight_global_scale"]
        found: Tensor = dequantize(values, own["weight_scale"], args=scheme.weights, dtype=torch.float32,
                                   global_scale=outer)  # fmt: skip
        return found
    compressor = BaseCompressor.get_value_from_registry(group.container)
    dense: Tensor = compressor.decompress(own, scheme)["weight"]
    return dense
