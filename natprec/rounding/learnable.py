"""What is learned of a whole rounded model: positions of codes, scales, and the small parameters that stay at 16 bits.

Norm weights and biases are stored beside the codes anyway, so that they cost nothing. All move by Adam (Kingma & Ba
2015, arXiv:1412.6980), each kind at its own rate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natprec.models.layers import Layer, put_codes
from natprec.models.segments import SegmentedModel
from natprec.quantizers import QuantizedTensor
from natprec.rounding.learning_state import under
from natprec.rounding.positions import Positions

CODES = 3e-3
"""Rate of positions, in codes a step. At 0.02 a step all positions that lie near a boundary cross it together, which
undoes what rounding had made up for (LOG.md, 2026-11-30)."""

SCALES = 1e-3
"""Rate of scales, in units of each scale."""

SMALL = 1e-3
"""Rate of norm weights and biases, in means of each."""

WITHIN = 0.4
"""How far from its code a position begins at most: what is nearer to a boundary would cross it at once."""

BETAS, EPSILON = (0.9, 0.95), 1e-14
"""Of Adam; gradients of a mean by single weights are far below the usual epsilon."""


class Learnable:
    """Everything that moves; the model's parameters are what is made of it.

    Attributes:
        parameters: of the model, whose gradients are wanted.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        layers: Mapping[str, Layer],
        codes: Mapping[str, QuantizedTensor],
        unrounded: Mapping[str, Tensor],
        storage_dtype: torch.dtype,
    ) -> None:
        """Begin at a rounded model.

        Args:
            layers: of the sites that are rounded; `codes`: where they begin.
            unrounded: what was rounded, (rows, columns).
            storage_dtype: of scales, and of small parameters that are no exception in their checkpoint.
        """
        self._layers, self._now = dict(layers), {name: codes[name] for name in layers}
        self._positions = {
            name: Positions(unrounded[name].to(codes[name].scale.device), codes[name], storage_dtype, WITHIN)
            for name in layers
        }
        quantized, dtypes = {id(layer.weight) for layer in layers.values()}, segmented.weights.dtypes
        self._small = {
            name: parameter
            for name, parameter in segmented.model.named_parameters()
            if parameter.dim() == 1 and id(parameter) not in quantized
        }
        self._stored = {name: dtypes.get(name, storage_dtype) for name in self._small}
        self._values = {name: parameter.data.clone() for name, parameter in self._small.items()}
        self.parameters: list[nn.Parameter] = [layer.weight for layer in self._layers.values()]
        self.parameters += self._small.values()
        self._optimizer = torch.optim.Adam(self._groups(), betas=BETAS, eps=EPSILON, fused=True)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self.put()

    def _groups(self) -> list[dict[str, Any]]:
        positions = list(self._positions.values())
        groups = [
            {"params": [each.at for each in positions], "lr": CODES},
            {"params": [each.moves for each in positions], "lr": SCALES},
        ]
        return groups + [{"params": [each], "lr": SMALL * float(each.abs().mean())} for each in self._values.values()]

    def step(self, left: float) -> None:
        """Move by the gradients in the parameters' `grad`, at this part of each rate; the model is what comes of it."""
        for name, layer in self._layers.items():
            gradient, positions = layer.gradient, self._positions[name]
            positions.at.grad = positions.moves.grad = None  # where the output does not depend on it
            if gradient is not None:
                positions.at.grad, positions.moves.grad = positions.slopes(gradient, self._now[name])
        for name, parameter in self._small.items():
            self._values[name].grad = parameter.grad
        for parameter in self.parameters:
            parameter.grad = None
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * left
        self._optimizer.step()
        self._optimizer.zero_grad()
        for positions in self._positions.values():
            positions.clamp_()
        self.put()

    def put(self) -> None:
        """Leave in the model what an engine reconstructs."""
        self._now = {name: positions.rounded() for name, positions in self._positions.items()}
        put_codes(self._layers, self._now)
        for name, parameter in self._small.items():
            parameter.data = self._values[name].to(self._stored[name]).to(parameter.dtype, copy=True)

    @property
    def codes(self) -> dict[str, QuantizedTensor]:
        """Site name → its codes and scales now."""
        return dict(self._now)

    @property
    def small(self) -> dict[str, Tensor]:
        """Parameter name → its value now, as the model has it."""
        return {name: parameter.data for name, parameter in self._small.items()}

    def put_back(self, codes: Mapping[str, QuantizedTensor], small: Mapping[str, Tensor]) -> None:
        """Leave what `codes` and `small` were before in the model."""
        self._now = {name: codes[name] for name in self._layers}
        put_codes(self._layers, self._now)
        for name, parameter in self._small.items():
            parameter.data = small[name]

    def tensors(self) -> dict[str, Tensor]:
        """All from which learning goes on, for a file: see `load`."""
        found = {}
        for number, each in enumerate(self._leaves()):
            found[f"value/{number}"] = each
            found |= {f"adam/{number}/{key}": value for key, value in self._optimizer.state.get(each, {}).items()}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave for the same model and codes."""
        for number, each in enumerate(self._leaves()):
            each.copy_(tensors[f"value/{number}"])
            state = under(f"adam/{number}/", tensors)
            if state:
                self._optimizer.state[each] = {
                    key: value.clone() if key == "step" else value.to(each.device, copy=True)
                    for key, value in state.items()
                }
        self.put()

    def _leaves(self) -> list[Tensor]:
        return [each for group in self._optimizer.param_groups for each in group["params"]]
