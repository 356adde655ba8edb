"""From a model of transformers without weights to one on packed codes, module by module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from natprec.checkpoints.code_reader import Checkpoint, Scheme
from natprec.errors import ModelError
from natprec.formats import activation
from natprec.models.layers import Layer, layer_of
from natprec.quantizers import QuantizedTensor
from natprec.runtime.gated import PARTS, activation_of
from natprec.runtime.kernels.dispatch import choose
from natprec.runtime.kernels.joined import Joined, Part
from natprec.runtime.kernels.kernel import Fused, Kernel
from natprec.runtime.kernels.kernel import Layer as KernelLayer
from natprec.runtime.kernels.linear import (
    HalfWeight,
    QuantEmbedding,
    QuantizedWeight,
    QuantLinear,
    StoredWeight,
)
from natprec.tasks import Task

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Linears of one parent that models call with one input; they run as one product where they share a format."""

HALF = (torch.bfloat16, torch.float16)
INT8_INPUTS = activation(8)


@dataclass(frozen=True)
class Chosen:
    """Which kernel a layer got.

    Attributes:
        kernel: its name; `half` for weights that are not quantized, `dense` for those that are unpacked as they load.
        format: of the weight.
        why: what the kernels before it in the table refused.
    """

    kernel: str
    format: str
    why: str = ""


class Builder:
    """Replaces the modules of one model."""

    def __init__(
        self, checkpoint: Checkpoint, model: nn.Module, device: str, kernels: tuple[Kernel, ...] | None
    ) -> None:
        self.checkpoint, self.model, self.device, self.kernels = checkpoint, model, device, kernels
        self.chosen: dict[str, Chosen] = {}
        layers = {name: layer_of(module) for name, module in model.named_modules()}
        self.layers = {name: layer for name, layer in layers.items() if layer is not None and _is_replaced(layer)}
        self.uses: dict[int, list[str]] = {}
        for name, layer in self.layers.items():
            self.uses.setdefault(id(layer.weight), []).append(name)

    def replace_all(self) -> None:
        """Every layer, siblings with one input together."""
        done: set[str] = set()
        for name, layer in self.layers.items():
            if name in done:
                continue
            uses = tuple(self.uses[id(layer.weight)])
            siblings = self._siblings(name) if len(uses) == 1 else ()
            if siblings:
                self._join(siblings)
                done.update(siblings)
                continue
            stored = self._stored((uses,))
            for use in uses:
                self._put(use, stored)
            done.update(uses)

    def fill_the_rest(self, task: Task) -> None:
        """Norms, biases of other modules, saved buffers: as float32; and convolutions, which run on dense weights."""
        uses: dict[int, list[str]] = {}
        for name, tensor in self.model.state_dict(keep_vars=True).items():
            if tensor.is_meta:
                uses.setdefault(id(tensor), []).append(name)
            elif name in self.checkpoint.files and not isinstance(tensor, nn.Parameter):
                tensor.copy_(self.checkpoint.tensor(name))
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        wanted: dict[str, list[str]] = {}
        for names in uses.values():
            known = [*names, *(tied[name] for name in names if name in tied)]  # biases are tied, too (BertGeneration)
            wanted.setdefault(next((n for n in known if n in self.checkpoint.files), names[0]), []).extend(names)
        convolutions = {f"{name}.weight": layer for name, layer in self._convolutions() if f"{name}.weight" in wanted}
        missing = [name for name in wanted if name not in self.checkpoint.files and name not in convolutions]
        if missing and task.does_without(self.model, missing):
            wanted = {name: names for name, names in wanted.items() if name not in missing}
        for stored, names in wanted.items():
            if stored in convolutions and stored not in self.checkpoint.files:
                value = self._convolution(stored.removesuffix(".weight"), convolutions[stored])
            else:
                value = self.checkpoint.tensor(stored)
            value = value.float() if value.is_floating_point() else value
            parameter = nn.Parameter(value, requires_grad=False)
            for name in names:
                parent, _, leaf = name.rpartition(".")
                owner = self.model.get_submodule(parent)
                if leaf in owner._parameters:
                    owner._parameters[leaf] = parameter
                else:
                    owner._buffers[leaf] = value

    def _convolutions(self) -> Iterator[tuple[str, Layer]]:
        for name, module in self.model.named_modules():
            layer = layer_of(module, convolutions=True)
            if layer is not None and layer.kind.dimensions:
                yield name, layer

    def _convolution(self, name: str, layer: Layer) -> Tensor:
        """The dense weight of a packed convolution, as its module stores it."""
        scheme = self.checkpoint.scheme(name, layer.module)
        if scheme is None:
            return self.checkpoint.tensor(f"{name}.weight")
        self.chosen[name] = Chosen("dense", scheme.format.name)
        codes = self.checkpoint.quantized((name,), scheme, layer.shape)
        return layer.kind.stored(codes.dequantize(), layer.weight.shape, layer.groups)

    def _siblings(self, name: str) -> tuple[str, ...]:
        """Full names of the Linears that run with this one, itself first; empty if it runs alone."""
        parent, _, leaf = name.rpartition(".")
        for leaves in TOGETHER:
            names = tuple(f"{parent}.{other}" for other in leaves)
            if leaf != leaves[0] or not all(other in self.layers for other in names):
                continue
            layers = [self.layers[other] for other in names]
            if any(layer.kind.looks_up for layer in layers):
                continue
            alike = {(self._scheme((other,)), self.layers[other].shape[1], self._shared((other,))) for other in names}
            shared = any(len(self.uses[id(layer.weight)]) > 1 for layer in layers)
            biases = {layer.bias is None for layer in layers}
            if len(alike) == len(biases) == 1 and not shared and not self._finished_apart(parent, leaves):
                return names
        return ()

    def _finished_apart(self, parent: str, leaves: tuple[str, ...]) -> bool:
        """Whether a kernel does what follows each: then gate and up are two products, and nothing is left after them.

        `natprec.runtime.gated` makes a forward of that, where a module computes what its parts suggest.
        """
        if not PARTS.issuperset(leaves) or activation_of(self.model.get_submodule(parent)) is None:
            return False
        name = f"{parent}.{leaves[0]}"
        scheme = self._scheme((name,))
        if scheme is None:
            return False
        layer = KernelLayer(scheme.format, *self.layers[name].shape, scheme.inputs == INT8_INPUTS)
        return isinstance(choose(layer, self.device, self.kernels)[0], Fused)

    def _join(self, names: tuple[str, ...]) -> None:
        stored = self._stored(tuple((name,) for name in names))
        biases = [self._bias(name) for name in names]
        bias = None if biases[0] is None else torch.cat([each for each in biases if each is not None])
        joined = Joined(QuantLinear(stored, bias), [self.layers[name].shape[0] for name in names])
        for index, name in enumerate(names):
            _set(self.model, name, Part(joined, index))

    def _put(self, name: str, stored: StoredWeight) -> None:
        layer = self.layers[name]
        if layer.kind.looks_up:
            _set(self.model, name, QuantEmbedding(stored, float(getattr(layer.module, "embed_scale", 1.0))))
        else:
            _set(self.model, name, QuantLinear(stored, self._bias(name)))

    def _bias(self, name: str) -> Tensor | None:
        bias = self.layers[name].bias
        if bias is None:
            return None
        uses = [use for use, layer in self.layers.items() if layer.bias is bias]
        stored = next((use for use in uses if f"{use}.bias" in self.checkpoint.files), name)
        return self.checkpoint.tensor(f"{stored}.bias").float()

    def _scheme(self, uses: tuple[str, ...]) -> Scheme | None:
        return next(filter(None, (self.checkpoint.scheme(use, self.layers[use].module) for use in uses)), None)

    def _shared(self, uses: tuple[str, ...]) -> tuple[float | None, ...]:
        """Scales that all weights of one product must have in common."""
        scheme = self._scheme(uses)
        found = (None, None) if scheme is None else self.checkpoint.shared(uses, scheme)
        return tuple(None if each is None else float(each) for each in found)

    def _stored(self, weights: tuple[tuple[str, ...], ...]) -> StoredWeight:
        """One weight, or several below each other; each given by the names of its uses."""
        scheme = self._scheme(weights[0])
        if scheme is None:
            return self._half(weights)
        codes = [self.checkpoint.quantized(uses, scheme, self.layers[uses[0]].shape) for uses in weights]
        weight = _below_each_other(codes)
        rows, columns = weight.codes.shape
        int8 = scheme.inputs == INT8_INPUTS
        layer = KernelLayer(scheme.format, rows, columns, int8)
        kernel, why = choose(layer, self.device, self.kernels)
        for name in (use for uses in weights for use in uses):
            self.chosen[name] = Chosen(kernel.name, layer.name, why)
        made = QuantizedWeight(weight, layer, kernel, _exact_dtype(weight.scale))
        if not int8 and scheme.inputs is not None:
            made.round_inputs(scheme.inputs, self.checkpoint.shared(weights[0], scheme)[1])
        return made

    def _half(self, weights: tuple[tuple[str, ...], ...]) -> StoredWeight:
        found = []
        for uses in weights:
            owner = next((use for use in uses if f"{use}.weight" in self.checkpoint.files), uses[0])
            found.append(self.layers[owner].kind.matrix(self.checkpoint.tensor(f"{owner}.weight")))
        weight = torch.cat(found) if len(found) > 1 else found[0]
        expected = (sum(self.layers[uses[0]].shape[0] for uses in weights), *found[0].shape[1:])
        if not weight.is_floating_point() or tuple(weight.shape) != expected:
            raise ModelError(
                f"tensor '{weights[0][0]}.weight' is {weight.dtype} {tuple(weight.shape)} and no scheme of config.json "
                f"names it; floats of {expected} were expected: download the checkpoint or quantize again"
            )
        for name in (use for uses in weights for use in uses):
            self.chosen[name] = Chosen("half", str(weight.dtype).removeprefix("torch."))
        return HalfWeight(weight if weight.dtype in HALF else weight.float(), self.device)


def _below_each_other(weights: Iterable[QuantizedTensor]) -> QuantizedTensor:
    """Rows of all, in one tensor."""
    weights = list(weights)
    if len(weights) == 1:
        return weights[0]
    zeros = [weight.zero_point for weight in weights if weight.zero_point is not None]
    return QuantizedTensor(
        weights[0].format,
        torch.cat([weight.codes for weight in weights]),
        torch.cat([weight.scale for weight in weights]),
        torch.cat(zeros) if zeros else None,
        outer=weights[0].outer,
    )


def _exact_dtype(scale: Tensor) -> torch.dtype:
    """The 16-bit dtype in which scales were stored, else float32."""
    return next((dtype for dtype in HALF if torch.equal(scale.to(dtype).float(), scale)), torch.float32)


def _is_replaced(layer: Layer) -> bool:
    """Layers whose forward is known: that of their kind, or of an embedding scaled by `embed_scale`."""
    return layer.own_forward or (layer.kind.looks_up and hasattr(layer.module, "embed_scale"))


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)
