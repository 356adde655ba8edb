"""Others' kernels in `gpu_bench`, by their own code: they store the product, one compiled kernel does the epilogue."""

from __future__ import annotations

import json
import math

import torch
from torch import Tensor
from torch.nn import functional

from scripts.gpu_cases import GROUP, Call, NotRun, Operands


def cublas(operands: Operands) -> Call:
    """Torch's bfloat16 product, the one to beat."""
    if operands.product.format.bits != 4:
        raise NotRun("it is the same whatever the width; see 4 bits")
    weights = [weight.dequantize().bfloat16() for weight in operands.weights]
    x = operands.x.bfloat16()
    return operands.then_epilogue(lambda copy: functional.linear(x, weights[copy]))


def marlin(operands: Operands) -> Call:
    """vLLM's, for 4 and 8 bits, as its MarlinLinearKernel prepares it (0.25.1): padded where no thread tile fits."""
    from vllm import _custom_ops as custom
    from vllm.model_executor.layers.quantization.utils import marlin_utils
    from vllm.scalar_type import scalar_types

    product, bits = operands.product, operands.product.format.bits
    if bits not in (4, 8):
        raise NotRun("Marlin has 4 and 8 bits")
    kind = scalar_types.uint4b8 if bits == 4 else scalar_types.uint8b128
    sizes = (product.rows, product.columns)
    padded = marlin_utils.marlin_padded_nk(*sizes, GROUP)
    device = operands.x.device
    empty = marlin_utils.marlin_make_empty_g_idx(device)
    workspace = marlin_utils.marlin_make_workspace_new(device)
    packed = []
    for weight in operands.weights:
        words = marlin_utils.marlin_pad_qweight(gptq_words(weight.codes, bits), *sizes, *padded)
        scale = marlin_utils.marlin_pad_scales(weight.scale.T.contiguous(), *sizes, *padded, GROUP)
        packed.append((
            custom.gptq_marlin_repack(words, perm=empty, size_k=padded[1], size_n=padded[0], num_bits=bits),
            marlin_utils.marlin_permute_scales(scale, size_k=padded[1], size_n=padded[0], group_size=GROUP),
        ))  # fmt: skip

    def multiply(copy: int) -> Tensor:
        return marlin_utils.apply_gptq_marlin_linear(
            input=operands.x, weight=packed[copy][0], weight_scale=packed[copy][1], weight_zp=empty, g_idx=empty,
            g_idx_sort_indices=empty, workspace=workspace, wtype=kind, output_size_per_partition=product.rows,
            input_size_per_partition=product.columns, is_k_full=True,
        )  # fmt: skip

    return operands.then_epilogue(multiply)


def gptq_words(codes: Tensor, bits: int) -> Tensor:
    """Codes as GPTQ packs them: (columns · bits / 32, rows), int32, the first column in the lowest bits."""
    return dense_words(codes, bits).T.contiguous()


def dense_words(codes: Tensor, bits: int) -> Tensor:
    """Codes as one bitstream per row: (rows, columns · bits / 32), int32, the first column in the lowest bits.

    As compressed-tensors packs since 0.18; vLLM 0.25.1 pins 0.17, which leaves gaps at 3, 5, 6 and 7 bits.
    """
    together = 32 // math.gcd(bits, 32)  # columns whose last code ends where a word does
    count = bits * together // 32
    unsigned = (codes.to(torch.int64) + 2 ** (bits - 1)).unflatten(1, (-1, together))
    words = torch.zeros(*unsigned.shape[:2], count + 1, dtype=torch.int64, device=codes.device)
    for column in range(together):
        word, shift = divmod(column * bits, 32)
        wide = unsigned[..., column] << shift
        words[..., word] += wide & 0xFFFFFFFF
        words[..., word + 1] += wide >> 32
    words = words[..., :count].flatten(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def humming(operands: Operands) -> Call:
    """Humming's JIT kernels beside 16-bit activations, padded as vLLM pads them (0.1.10 and 0.1.19).

    Its own heuristics choose the tile of these tokens; only that one is compiled.
    """
    from humming.layer import HummingLayer, HummingLayerMethod

    product, layers = operands.product, []
    for weight in operands.weights:
        layer = HummingLayer(
            shape_n=product.rows, shape_k=product.columns, torch_dtype=torch.float16, pad_n_to_multiple=256,
            pad_k_to_multiple=128,
            weight_config={"quant_method": "compressed-tensors", "format": "pack-quantized", "type": "int",
                           "num_bits": product.format.bits, "strategy": "group", "group_size": GROUP,
                           "symmetric": True},
        ).to(operands.device)  # fmt: skip
        packed = dense_words(weight.codes, product.format.bits)
        layer.load_from_tensors({"weight_packed": packed, "weight_scale": weight.scale})
        layer.transform()
        layers.append(layer)
    tiles = HummingLayerMethod.get_default_tuning_configs(layers[0])
    tile = next(json.dumps(tile) for above, last, tile in tiles if above < product.tokens <= last)
    return operands.then_epilogue(lambda copy: layers[copy](operands.x, tuning_config=tile))


def bitsandbytes(operands: Operands) -> Call:
    """NF4 for 4 bits, LLM.int8 for 8: grids of its own, so that its result is only roughly the expected one."""
    import bitsandbytes as bnb

    product, layers = operands.product, []
    for weight in operands.weights:
        sizes, dense = (product.columns, product.rows), weight.dequantize().half()
        if product.format.bits == 4:
            layer = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float16, quant_type="nf4")
        elif product.format.bits == 8:
            layer = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False, threshold=0.0)
        else:
            raise NotRun("bitsandbytes has 4 and 8 bits")
        layer.load_state_dict({"weight": dense.cpu()})
        layers.append(layer.to(operands.device))
    return operands.then_epilogue(lambda copy: layers[copy](operands.x))
