"""`natprec inspect --lower`: a block's lowered graph on low-bit kernels, beside the dense block (T15).

The graph of one block is captured and lowered: every Linear that has a format becomes one call on its codes, with what
an epilogue can hold inside it. The graph runs on held-out text on the kernels that this machine's table chooses, and
beside it the block with the same weights made dense again, and the block as it was. The first difference is what
kernels add, which has to vanish beside the second, what rounding to the formats costs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError, unknown
from natprec.formats import Format
from natprec.inspection.ir import capture
from natprec.inspection.ir.lower import KernelCall, Lowered, lower
from natprec.measurement.subject import Subject
from natprec.models.layers import known_layer
from natprec.models.segments import Context
from natprec.quantizers import QuantizedTensor, quantize
from natprec.tasks import Samples


@dataclass(frozen=True)
class LoweredBlock:
    """What running one block in its lowered form showed; differences are root mean squares over that of the output.

    Attributes:
        calls: weight → its format, the kernel that ran it, and the epilogue inside its call.
        kernels: the lowered graph beside the block with the same weights made dense.
        rounding: that dense block beside the original.
    """

    block: str
    tokens: int
    calls: dict[str, dict[str, str]]
    kernels: float
    rounding: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@torch.no_grad()
def lowered_block(subject: Subject, samples: Samples, formats: Mapping[str, Format | None], name: str) -> LoweredBlock:
    """Lower a block, run it, and compare.

    Args:
        samples: of which the first is run.
        formats: weight site → format, rounded to nearest; None: it stays dense.
        name: of the block, or of something inside it; empty: the first block.
    Raises:
        InputError: there is no such block.
        ModelError: torch.export fails at the block, or none of its Linears has a format.
    """
    segmented = subject.segmented
    if not segmented.blocks:
        raise ModelError(f"model {subject.name!r} has no list of blocks that could be lowered one at a time")
    found = next((each for each in segmented.block_names if f"{name}.".startswith(f"{each}.")), None)
    if name and found is None:
        raise unknown("block", name, segmented.block_names)
    block = found or segmented.block_names[0]
    index = segmented.block_names.index(block)
    hidden, contexts = segmented.prefix(samples[:1])
    for before in range(index):
        hidden = segmented.block(before, hidden, contexts[before])
    with segmented.hold(index):
        alone = _Alone(copy.deepcopy(segmented.blocks[index]), contexts[index])
    own = {
        site.name.removeprefix(block): (site.name, fmt)
        for site in subject.sites
        if site.role == "linear" and site.name.startswith(block + ".") and (fmt := formats.get(site.name)) is not None
    }
    if not own:
        raise InputError(f"no Linear of block {block!r} has a format; give a plan that quantizes it (--plan)")
    original = alone(hidden)
    codes: dict[str, QuantizedTensor] = {}
    for inside, (_, fmt) in own.items():
        layer = known_layer(alone.get_submodule(f"block{inside}"))
        codes[f"block{inside}"] = quantize(layer.matrix, fmt, subject.storage_dtype)
        layer.put(codes[f"block{inside}"].dequantize())
    dense = alone(hidden)
    graph = capture(alone, {"hidden": hidden})
    if graph.by != "torch.export":
        raise ModelError(f"block {block!r} cannot be lowered: torch.export fails at {graph.culprit!r} ({graph.reason})")
    made = lower(graph, codes, {}, call=KernelCall)
    (output,) = made.compute({"hidden": hidden})[:1]
    kernels = _kernels(made)
    calls = {
        own[weight.removeprefix("block")][0]: {
            "format": codes[weight].format.name, "kernel": kernels[weight], "epilogue": made.epilogues[weight],
        }
        for weight in made.epilogues
    }  # fmt: skip
    return LoweredBlock(block, samples.length, calls, _apart(output, dense), _apart(dense, original))


class _Alone(nn.Module):
    """A block with all that it is given beside the hidden state held still."""

    def __init__(self, block: nn.Module, context: Context) -> None:
        super().__init__()
        self.block = block
        self._context = context

    def forward(self, hidden: Tensor) -> Tensor:
        """(1, time, hidden) in and out."""
        arguments, keywords = self._context
        output = self.block(hidden, *arguments, **keywords)
        return output[0] if isinstance(output, tuple) else output


def _kernels(made: Lowered) -> dict[str, str]:
    """Weight → name of the kernel that runs it; the calls are in the order of `epilogues`."""
    calls = [module for module in made.module.modules() if isinstance(module, KernelCall)]
    return {weight: call.kernel for weight, call in zip(made.epilogues, calls, strict=True)}


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).double().square().mean().sqrt() / other.double().square().mean().sqrt())
