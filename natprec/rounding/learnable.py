"""What is learned of a whole rounded model: positions of codes, scales, and the small parameters that stay at 16 bits.

Norm weights and biases are stored beside the codes anyway, so that they cost nothing. All move by Adam (Kingma & Ba
2015, arXiv:1412.6980), each kind at its own rate.

Several processes share the weights out: each moves its own, for which it receives all gradients, and tells the others
what has become of them. All move the small parameters, alike.
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
from natprec.rounding.together import codes_of_all, gradients_at_owners, share_weights

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
    """Everything that moves; the model's parameters are what is made of it. All processes call each method.

    Attributes:
        parameters: of the model, whose gradients are wanted.
        workers: the processes that share the weights out.
        formats: of all sites that are rounded.
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
        self.workers = workers = segmented.workers
        self._layers, self.formats = dict(layers), {name: codes[name].format for name in layers}
        self._owner = workers.assign({name: layer.weight.numel() for name, layer in layers.items()})
        own = [name for name in layers if self._owner[name] == workers.rank]
        self._now = {name: codes[name] for name in own}
        self._wires = _by_wire(self._layers, segmented.products if workers.size > 1 else torch.float32)
        self._positions = {
            name: Positions(unrounded[name].to(codes[name].scale.device), codes[name], storage_dtype, WITHIN)
            for name in own
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
        gradients: dict[str, Tensor] = {}
        for dtype, layers in self._wires.items():
            gradients |= gradients_at_owners(self.workers, layers, self._owner, dtype)
        for name, positions in self._positions.items():
            positions.at.grad = positions.moves.grad = None  # where the output does not depend on it
            if name in gradients:
                positions.at.grad, positions.moves.grad = positions.slopes(gradients[name], self._now[name])
        for name, gradient in self._small_gradients().items():
            self._values[name].grad = gradient
        for parameter in self.parameters:
            parameter.grad = None
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * left
        self._optimizer.step()
        self._optimizer.zero_grad()
        for positions in self._positions.values():
            positions.clamp_()
        self.put()

    def _small_gradients(self) -> dict[str, Tensor | None]:
        """Of the small parameters, of all processes' text."""
        own = {name: parameter.grad for name, parameter in self._small.items()}
        if self.workers.size == 1 or not own:
            return own
        flat = [torch.zeros_like(self._values[name]) if each is None else each for name, each in own.items()]
        reached = torch.tensor([each is not None for each in own.values()], dtype=torch.float64)
        total, *sums = self.workers.all_sum(reached, *(each.to("cpu", torch.float64) for each in flat))
        return {
            name: value.to(self._values[name].device, self._values[name].dtype) if count else None
            for name, value, count in zip(own, sums, total.tolist(), strict=True)
        }

    def put(self) -> None:
        """Leave in the model what an engine reconstructs."""
        self._now = {name: positions.rounded() for name, positions in self._positions.items()}
        put_codes({name: self._layers[name] for name in self._now}, self._now)
        for dtype, layers in self._wires.items():
            share_weights(self.workers, layers, self._owner, dtype)
        for name, parameter in self._small.items():
            parameter.data = self._values[name].to(self._stored[name]).to(parameter.dtype, copy=True)

    @property
    def codes(self) -> dict[str, QuantizedTensor]:
        """Site name → its codes and scales now."""
        return codes_of_all(self.workers, self._now, self.formats, self.parameters[0].device)

    @property
    def small(self) -> dict[str, Tensor]:
        """Parameter name → its value now, as the model has it."""
        return {name: parameter.data for name, parameter in self._small.items()}

    def put_back(self, codes: Mapping[str, QuantizedTensor], small: Mapping[str, Tensor]) -> None:
        """Leave what `codes` and `small` were before in the model."""
        self._now = {name: codes[name] for name in self._now}
        put_codes(self._layers, codes)
        for name, parameter in self._small.items():
            parameter.data = small[name]

    def tensors(self) -> dict[str, Tensor]:
        """All of this process's from which learning goes on, for a file: see `load`."""
        found = {}
        for name, each in self._leaves(small=self.workers.first).items():
            found[f"value/{name}"] = each
            found |= {f"adam/{name}/{key}": value for key, value in self._optimizer.state.get(each, {}).items()}
        return {name: value.cpu().contiguous() for name, value in found.items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave at all processes, whichever they were, for the same model and codes."""
        for name, each in self._leaves(small=True).items():
            each.copy_(tensors[f"value/{name}"])
            state = under(f"adam/{name}/", tensors)
            if state:
                self._optimizer.state[each] = {
                    key: value.clone() if key == "step" else value.to(each.device, copy=True)
                    for key, value in state.items()
                }
        self.put()

    def _leaves(self, small: bool) -> dict[str, Tensor]:
        """What the optimizer moves here, by name; `small`: also what all processes move alike."""
        found = {f"at/{name}": each.at for name, each in self._positions.items()}
        found |= {f"scale/{name}": each.moves for name, each in self._positions.items()}
        return found | ({f"small/{name}": each for name, each in self._values.items()} if small else {})


def _by_wire(layers: Mapping[str, Layer], products: torch.dtype) -> dict[torch.dtype, dict[str, Layer]]:
    """The dtypes in which weights and their gradients travel, and whose: those that products round them to anyway."""
    found: dict[torch.dtype, dict[str, Layer]] = {}
    for name, layer in layers.items():
        found.setdefault(torch.float32 if layer.kind.looks_up else products, {})[name] = layer
    return found
