"""What `gpu_bench` compares: cases, their operands, and how each kernel is prepared for them.

Peers run by their own code: the product is stored, and one compiled elementwise kernel does the epilogue.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import torch
from torch import Tensor
from torch.nn import functional

from natprec.formats import NumberFormat
from natprec.kernels import Epilogue, reference
from natprec.kernels.layout import DEPTH_OF_CODES, DEPTH_OF_FLOATS, planar
from natprec.kernels.traffic import Product
from natprec.kernels.triton.tiles import tiles
from natprec.quantizers import QuantizedTensor

GROUP = 64
SHAPES = {
    "smollm2-135m": {"qkv": (960, 576), "o": (576, 576), "gate": (1536, 576), "down": (576, 1536)},
    "llama-3.1-8b": {"qkv": (6144, 4096), "o": (4096, 4096), "gate": (14336, 4096), "down": (4096, 14336)},
}
"""Model → layer → rows and columns."""

EPILOGUES = {
    "qkv": Epilogue(),
    "o": Epilogue(residual=True),
    "gate": Epilogue("silu", gated=True),
    "down": Epilogue(residual=True),
}
OUTPUT_SCALE = 0.02
"""Of the gated product beside int8 activations, which is then the int8 input of what follows."""

Call = Callable[[int], Tensor]
"""A prepared product; its argument says which copy of the weight is used."""


class NotRun(Exception):
    """Why a kernel does not take part."""


@dataclass(frozen=True)
class Case:
    """One product: x (tokens, columns) times a weight, then the layer's epilogue."""

    model: str
    layer: str
    bits: int
    tokens: int
    coded: bool

    @property
    def product(self) -> Product:
        """With its shape, format and epilogue."""
        rows, columns = SHAPES[self.model][self.layer]
        epilogue = EPILOGUES[self.layer]
        if self.coded and epilogue.gated:
            epilogue = replace(epilogue, output_scale=OUTPUT_SCALE)
        return Product(self.tokens, rows, columns, NumberFormat(self.bits, GROUP), epilogue, self.coded)


class Operands:
    """Random tensors of a case, on a device."""

    def __init__(self, case: Case, device: str, copies: int) -> None:
        draw = torch.Generator(device).manual_seed(case.bits)
        self.product, self.device = case.product, device
        shape = (case.tokens, self.product.rows)
        self.x = torch.randn(case.tokens, self.product.columns, generator=draw, device=device).half()
        self.x_scale: Tensor | None = None
        if case.coded:
            self.codes, self.x_scale = reference.quantize_tokens(self.x)
            self.x = (self.codes * self.x_scale.unsqueeze(1)).half()
        epilogue = self.product.epilogue
        first, second = (torch.randn(shape, generator=draw, device=device).half() for _ in range(2))
        self.multiplier = first if epilogue.gated else None
        self.residual = second if epilogue.residual else None
        self.weights = [self._weight(draw) for _ in range(copies)]

    def _weight(self, draw: torch.Generator) -> QuantizedTensor:
        (low, high), rows, columns = self.product.format.code_range, self.product.rows, self.product.columns
        where = {"generator": draw, "device": self.device}
        codes = torch.randint(low, high + 1, (rows, columns), dtype=torch.int8, **where)
        scale = (0.5 + torch.rand(rows, columns // GROUP, **where)) / (high * columns**0.5)
        return QuantizedTensor(self.product.format, codes, scale.half(), None)

    @cached_property
    def expected(self) -> Tensor:
        """Of the first weight, float64 or int8: the specification."""
        inputs = self.x if self.x_scale is None else self.codes
        return reference.linear(
            inputs, self.weights[0], x_scale=self.x_scale, epilogue=self.product.epilogue,
            multiplier=self.multiplier, residual=self.residual,
        )  # fmt: skip

    def then_epilogue(self, products: Callable[[int], Tensor]) -> Call:
        """An unfused kernel's product, and the epilogue as one kernel more."""
        epilogue = self.product.epilogue
        if epilogue == Epilogue():
            return products
        apply = compiled(epilogue) if self.device != "cpu" else epilogue.apply
        return lambda copy: apply(products(copy), None, self.multiplier, self.residual)


@cache
def compiled(epilogue: Epilogue) -> Callable[..., Tensor]:
    """The epilogue as one kernel, compiled once for all shapes and each combination of operands."""
    torch._dynamo.config.recompile_limit = 64  # beyond it, Torch would run it uncompiled, and say so on stderr only
    return torch.compile(epilogue.apply, dynamic=True)


def natprec(operands: Operands, tile: int) -> Call:
    """Ours, with one of the tiles that it is tuned over."""
    from natprec.kernels.triton.launch import capability, launch

    product, coded = operands.product, operands.x_scale is not None
    choices = tiles(product.tokens, capability(operands.x.device), product.format.bits, coded)
    if tile >= len(choices):
        raise NotRun(f"there are {len(choices)} tiles")
    depth = DEPTH_OF_CODES if coded else DEPTH_OF_FLOATS
    weights = [planar(weight, depth) for weight in operands.weights]
    dtype = torch.float16 if product.epilogue.output_scale is None else torch.int8

    def call(copy: int) -> Tensor:
        out = torch.empty(product.tokens, product.rows, dtype=dtype, device=operands.device)
        inputs = operands.codes if coded else operands.x
        launch(out, inputs, weights[copy], product.epilogue, operands.x_scale, None, operands.multiplier,
               operands.residual, choices[tile])  # fmt: skip
        return out

    return call


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
    unsigned = (codes.T.to(torch.int64) + 2 ** (bits - 1)).unflatten(0, (-1, 32 // bits))
    words = (unsigned << torch.arange(0, 32, bits, device=codes.device).view(1, -1, 1)).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int().contiguous()


def dense_words(codes: Tensor, bits: int) -> Tensor:
    """Codes as one bitstream per row: (rows, columns · bits / 32), int32, the first column in the lowest bits.

    As compressed-tensors packs since 0.18; vLLM 0.25.1 pins 0.17, which leaves gaps at 3, 5, 6 and 7 bits.
    """
    unsigned = (codes.to(torch.int64) + 2 ** (bits - 1)).unflatten(1, (-1, 32))
    words = torch.zeros(*unsigned.shape[:2], bits + 1, dtype=torch.int64, device=codes.device)
    for column in range(32):
        word, shift = divmod(column * bits, 32)
        wide = unsigned[..., column] << shift
        words[..., word] += wide & 0xFFFFFFFF
        words[..., word + 1] += wide >> 32
    words = words[..., :bits].flatten(1)
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


@dataclass(frozen=True)
class Entry:
    """A kernel of the comparison.

    Attributes:
        prepare: from operands to a call; raises NotRun.
        tolerance: the norm of its error over that of the expected result.
        exact: int8 results differ in at most 1 of 10,000 codes, by 1.
    """

    prepare: Callable[[Operands], Call]
    tolerance: float
    exact: bool = False


KERNELS = {
    **{f"natprec tile {n}": Entry(lambda operands, n=n: natprec(operands, n), 1e-3, exact=True) for n in range(2)},
    "cublas-bfloat16": Entry(cublas, 1e-2),
    "marlin": Entry(marlin, 5e-3),
    "humming": Entry(humming, 5e-3),
    "bitsandbytes": Entry(bitsandbytes, 0.25),
}
