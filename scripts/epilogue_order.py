"""Both orders of an epilogue (T11) on the layers of a real model: rounded at its end only, or before it and at its end.

    python scripts/epilogue_order.py --data valid.txt

Accumulators are those of the dense float32 model on real text, for models built like llama. Every grid is int8 with one
scale, the tensor's largest value over 127. Prints Markdown, for each product and epilogue: squared error over squared
values when rounded once, when rounded twice, and when the product is rounded and its result is not, which no int8
tensor holds; the share of codes that differ; and elements at which rounding twice is nearer, 0 by the theorem. Exit
code 1 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natprec.data.windows import load_tokens
from natprec.models.loading import load_model
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.epilogue import CODES, round_to_codes
from natprec.utils.hooks import attached


@dataclass(frozen=True)
class Case:
    """A product of one block, and what is done to it."""

    product: str
    accumulator: Tensor
    epilogue: Epilogue
    multiplier: Tensor | None = None
    residual: Tensor | None = None


@dataclass(frozen=True)
class Orders:
    """What the two orders leave of one result.

    Attributes:
        once: squared error over the squared values, where the result is rounded to int8 at the end only.
        twice: where the product is rounded to int8 before the epilogue, and its result again.
        unstored: where the product is rounded before the epilogue and the result is not: off the grid.
        differ: share of the codes of `once` and `twice` that are not the same.
        nearer: elements at which `twice` is nearer to the exact result than `once`.
    """

    once: float
    twice: float
    unstored: float
    differ: float
    nearer: int


def scale_of(value: Tensor) -> float:
    """The step of an int8 grid that reaches the largest value; 1 where all are 0."""
    return float(value.abs().max()) / CODES[1] or 1.0


def both_orders(case: Case) -> Orders:
    """Both, on one tensor; all but the roundings in float64."""
    floats = replace(case.epilogue, output_scale=None)
    product = case.accumulator.double()
    exact = floats.apply(product, None, case.multiplier, case.residual)
    step, product_step = scale_of(exact), scale_of(product)
    rounded = round_to_codes(product, product_step).double() * product_step
    unstored = floats.apply(rounded, None, case.multiplier, case.residual)
    epilogue = replace(case.epilogue, output_scale=step)
    once = epilogue.apply(product, None, case.multiplier, case.residual)
    twice = epilogue.apply(rounded, None, case.multiplier, case.residual)
    errors = [(value - exact).abs() for value in (once.double() * step, twice.double() * step, unstored)]
    size = float(exact.square().sum()) or 1.0
    return Orders(
        *(float(error.square().sum()) / size for error in errors),
        differ=float((once != twice).double().mean()),
        nearer=int((errors[1] < errors[0] - 1e-9 * step).sum()),
    )


@torch.no_grad()
def cases(model: Any, ids: Tensor, blocks: list[int]) -> dict[int, list[Case]]:
    """Block → its products, all tokens below each other."""
    layers: nn.ModuleList = model.get_submodule("model.layers")
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}
    handles = []
    for number in blocks:
        block = layers[number]
        for module in (block.input_layernorm, block.post_attention_layernorm, block.self_attn.o_proj,
                       block.mlp.gate_proj, block.mlp.up_proj, block.mlp.down_proj):  # fmt: skip
            handles.append(module.register_forward_hook(
                lambda module, args, output: seen.__setitem__(module, (args[0].flatten(0, 1), output.flatten(0, 1)))
            ))  # fmt: skip
    with attached(handles):
        model(input_ids=ids, use_cache=False)
    found = {}
    for number in blocks:
        block = layers[number]
        gate, up, down = (seen[getattr(block.mlp, name)][1] for name in ("gate_proj", "up_proj", "down_proj"))
        stream, middle = seen[block.input_layernorm][0], seen[block.post_attention_layernorm][0]
        name = str(model.config.hidden_act)
        found[number] = [
            Case("gate_proj", gate, Epilogue(name)),
            Case("gate_proj", gate, Epilogue(name, gated=True), multiplier=up),
            Case("o_proj", seen[block.self_attn.o_proj][1], Epilogue(residual=True), residual=stream),
            Case("down_proj", down, Epilogue(residual=True), residual=middle),
        ]
    return found


def main() -> int:
    """Load, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 10, 20, 29])
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    loaded = load_model(options.model)
    ids = load_tokens(
        loaded.tokenizer, options.data, sequences=options.sequences, length=options.length, split="held-out"
    )
    print(
        "| block | product | epilogue | once | twice | twice / once | not rounded again | codes differ | twice nearer |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    nearer = 0
    for number, products in cases(loaded.model, ids, options.blocks).items():
        for case in products:
            found = both_orders(case)
            nearer += found.nearer
            gains = " (gains)" if found.unstored < found.once else ""
            errors = (
                f"{found.once:.2e} | {found.twice:.2e} | {found.twice / found.once:.2f} | {found.unstored:.2e}{gains}"
            )
            print(
                f"| {number} | {case.product} | {case.epilogue.name} | {errors} | {found.differ:.1%} | {found.nearer} |"
            )
    return int(nearer > 0)


if __name__ == "__main__":
    sys.exit(main())
