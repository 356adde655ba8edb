"""What rounding whatever flows into a layer costs at the output: D of each width, by one way back for all of them.

With s the scalar that the distortion draws and g = ∂s/∂x at the flow x, D ≈ ½ E[(g · δ)²] for the error δ = Q_b(x) - x
of a width b (T2, in its directional form, since errors of few bits are correlated). A layer that runs several times has
the sum of g · δ over its runs. `exactly` rounds the flow and runs the rest again: the definition, for checks.

The grid: uniform, from the least to the largest of the values that share it; those of one image, or of its channels.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from natprec.distortions import Distortion
from natprec.tasks import Samples
from natprec.utils.hooks import attached, of_its_own
from natprec.utils.seeds import derived

Flow = tuple[str, bool]
"""A module, by its name, and whether each channel of its input has a grid of its own."""


def rounded(values: Tensor, bits: int, by_channel: bool) -> Tensor:
    """The nearest of 2^bits equally spaced values.

    Args:
        values: (batch, …); by channel (batch, channels, …).
    """
    flat = values.flatten(2) if by_channel else values.flatten(1)
    low, high = flat.amin(-1, keepdim=True), flat.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, 1.0)
    return ((flat - low) / step).round_().mul_(step).add_(low).view(values.shape)


def flow_curves(
    module: nn.Module,
    samples: Samples,
    flows: Sequence[Flow],
    widths: Sequence[int],
    distortion: Distortion,
    *,
    draws: int,
    seed: int,
) -> dict[Flow, np.ndarray]:
    """Flow → (samples, widths) estimates of D.

    Args:
        draws: ways back for each sample.
    """
    found = {flow: np.zeros((len(samples), len(widths))) for flow in flows}
    for number in range(len(samples)):
        sums = {flow: torch.zeros(draws, len(widths), dtype=torch.float64) for flow in flows}
        at = [0]

        def meet(flow: Flow, given: Tensor, gradient: Tensor, sums: dict[Flow, Tensor] = sums, at: Any = at) -> None:
            for column, bits in enumerate(widths):
                error = rounded(given, bits, flow[1]).sub_(given)
                sums[flow][at[0], column] += torch.linalg.vecdot(gradient.flatten(), error.flatten()).double()

        with watching(module, flows, meet):
            output = distortion.output(module, samples[number : number + 1])
            for at[0] in range(draws):
                scalar = distortion.draw(output, [number], derived(seed, at[0]))
                scalar.backward(retain_graph=at[0] < draws - 1)
        for flow, values in sums.items():
            found[flow][number] = (values.square().mean(0) / 2).numpy()
    return found


@contextlib.contextmanager
def watching(module: nn.Module, flows: Sequence[Flow], meet: Any) -> Iterator[None]:
    """Within the block `meet(flow, input, gradient)` is called for each run of each watched module on the way back."""
    by_module: dict[str, list[Flow]] = {}
    for flow in flows:
        by_module.setdefault(flow[0], []).append(flow)

    def hook(several: list[Flow]) -> Any:
        def watch(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            own, values = of_its_own(args[0]), args[0].detach()
            own.register_hook(lambda gradient: [meet(flow, values, gradient) for flow in several] and None)
            return (own, *args[1:])

        return watch

    watched = ((module.get_submodule(name), several) for name, several in by_module.items())
    with attached([each.register_forward_pre_hook(hook(several)) for each, several in watched]):
        yield


@torch.no_grad()
def exactly(
    module: nn.Module, samples: Samples, flow: Flow, widths: Sequence[int], distortion: Distortion
) -> np.ndarray:
    """(samples, widths): D of the output when the flow alone is rounded, and all after it is run again."""
    found = np.zeros((len(samples), len(widths)))
    for batch in samples.batches():
        own = samples[batch]
        reference = distortion.output(module, own)
        for column, bits in enumerate(widths):
            with attached([_rounding(module.get_submodule(flow[0]), bits, flow[1])]):
                distances = distortion.between(reference, distortion.output(module, own), own)
            found[batch, column] = distances.mean(1).numpy()
    return found


def _rounding(module: nn.Module, bits: int, by_channel: bool) -> Any:
    return module.register_forward_pre_hook(lambda _, args: (rounded(args[0], bits, by_channel), *args[1:]))


def checked(
    module: nn.Module, samples: Samples, found: Mapping[Flow, np.ndarray], chosen: Sequence[tuple[Flow, int]],
    widths: Sequence[int], distortion: Distortion,
) -> list[dict[str, Any]]:  # fmt: skip
    """The estimate beside the exact value, of some flows at some widths."""
    rows = []
    for flow, bits in chosen:
        estimate = float(found[flow][:, widths.index(bits)].mean())
        exact = float(exactly(module, samples, flow, [bits], distortion).mean())
        rows.append({"layer": flow[0], "bits": bits, "estimate": estimate, "exact": exact})
    return rows
