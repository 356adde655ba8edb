"""A weight as bitsandbytes stores it, and what transformers needs to hear of it: written without bitsandbytes.

    weight                                uint8 (elements / 2, 1): two codes a byte, the first in the high half
    weight.absmax                         the scale of each block: float32, or a byte under double quantization
    weight.quant_map                      float32 (16,): what codes mean
    weight.nested_absmax, …_quant_map     the factors of bytes of scales, and what such bytes mean
    weight.quant_state.bitsandbytes__nf4  the rest as JSON in bytes

Each weight describes itself, so that layers may differ in table, block and double quantization; what config.json says
of all holds for weights that are quantized while they are loaded. Source: `QuantState.as_dict` of bitsandbytes 0.50.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natprec.formats import Format, Table
from natprec.formats.tables import DYNAMIC, FP4, NESTED_BLOCK, NF4
from natprec.models.weight_sites import Site
from natprec.quantizers import QuantizedTensor
from natprec.quantizers.double_scales import codes_of

STATE = "quant_state.bitsandbytes__"

_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, -0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0)
ORDER = {NF4: NF4.values, FP4: tuple(each / 12 for each in _FP4)}
"""Table → what the codes of bitsandbytes mean, in their order."""


def four_bit_tensors(uses: list[str], value: QuantizedTensor, int8: bool, dtype: torch.dtype) -> dict[str, Tensor]:
    """One weight's tensors by name.

    Args:
        uses: modules that use it; bitsandbytes has none of tied weights.
        int8: see `natprec.checkpoints.packed_weights.packed`; never here.
        dtype: in which bitsandbytes hands out dense weights.
    """
    value, fmt = value.to("cpu"), value.format
    table, name = fmt.codebook, f"{uses[0]}.weight"
    assert isinstance(table, Table)
    meaning = torch.tensor(ORDER[table])
    theirs = torch.tensor([int((meaning == each).nonzero()[0]) for each in torch.tensor(table.values)])
    codes = theirs[value.codes.long().flatten()].to(torch.uint8)
    rest: dict[str, Any] = {
        "quant_type": table.name,
        "blocksize": fmt.group_size,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(value.codes.shape),
    }
    tensors = {name: (codes[0::2] << 4 | codes[1::2]).unsqueeze(1), f"{name}.quant_map": meaning}
    if fmt.doubly_quantized:
        assert value.outer is not None
        tensors[f"{name}.absmax"] = codes_of(value.scale, value.outer, fmt).flatten()
        tensors[f"{name}.nested_absmax"] = value.outer[1:].clone()
        tensors[f"{name}.nested_quant_map"] = torch.tensor(DYNAMIC.values)
        rest |= {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32", "nested_offset": float(value.outer[0])}
    else:
        tensors[f"{name}.absmax"] = value.scale.float().flatten().contiguous()
    said = json.dumps(rest).encode()
    tensors[f"{name}.{STATE}{table.name}"] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    return tensors


def four_bit_config(
    model: nn.Module, sites: Sequence[Site], formats: Mapping[str, Format], dtype: torch.dtype
) -> dict[str, Any] | None:
    """The `quantization_config` of config.json; None where nothing is quantized.

    Args:
        formats: site → format; of all other Linears transformers is told to leave them alone.
        dtype: of the model, in which products are computed.
    """
    if not formats:
        return None
    usual = max(formats.values(), key=lambda fmt: sum(site.elements for site in sites if formats.get(site.name) == fmt))
    quantized = {use for site in sites if site.name in formats for use in site.uses}
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": usual.codebook.name,
        "bnb_4bit_use_double_quant": usual.doubly_quantized,
        "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_skip_modules": [name for name in linears if name not in quantized],
    }
