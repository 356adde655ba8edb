"""A checkpoint as a model that runs on its codes.

The model of transformers is built without weights. Then its Linears and embeddings are replaced one by one by
modules on packed codes, each with the kernel that the table gives it; no dense copy of a quantized weight is ever kept.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import ModelError
from natprec.kernels.dispatch import choose
from natprec.kernels.kernel import Kernel, Layer
from natprec.kernels.linear import HalfWeight, Joined, Part, QuantEmbedding, QuantizedWeight, QuantLinear, StoredWeight
from natprec.models.checkpoints import auto_class, explained, model_kind
from natprec.models.disk_names import DiskNames
from natprec.models.encoders import drop_missing_pooler
from natprec.models.experts import take_apart
from natprec.models.surroundings import quiet, usable_device
from natprec.quantizers import QuantizedTensor
from natprec.runtime.checkpoint import Checkpoint, Scheme
from natprec.runtime.replaced import Replaced, replace

TOGETHER = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"), ("gate_proj", "up_proj"))
"""Linears of one parent that models call with one input; they run as one product where they share a format."""

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Chosen:
    """Which kernel a layer got.

    Attributes:
        kernel: its name; `half` for weights that are not quantized.
        format: of the weight.
        why: what the kernels before it in the table refused.
    """

    kernel: str
    format: str
    why: str = ""


@dataclass(frozen=True)
class Runnable:
    """A loaded checkpoint; call it like the model of transformers that it is.

    Attributes:
        model: float32 activations, weights as codes.
        tokenizer: the one in the folder.
        kernels: module → what runs it.
        kind: 'causal' or 'encoder'.
        device: where it computes, and where its inputs must be.
        replaced: what runs otherwise than as transformers' modules, on the CPU.
    """

    model: Any
    tokenizer: Any
    kernels: dict[str, Chosen]
    kind: str
    device: torch.device
    replaced: Replaced = field(default_factory=Replaced)

    @property
    def resident_bytes(self) -> int:
        """Bytes of all weights and buffers in memory, shared ones once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        storages = {_place(tensor): _bytes(tensor) for tensor in tensors}
        return sum(storages.values())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward."""
        return self.model(*args, **kwargs)


def load(folder: str | Path, *, device: str = "cpu", kernels: tuple[Kernel, ...] | None = None) -> Runnable:
    """Open a compressed-tensors checkpoint for running. Its codes are packed on the CPU, then moved.

    Args:
        folder: as `natprec quantize` or another quantizer wrote it.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
        kernels: what may run a layer, the preferred first; else the device's own.
    Raises:
        InputError: no such checkpoint, or no such device.
        ModelError: a file or tensor is missing or damaged, or a layer needs a kernel that there is none of.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    folder, target = Path(folder), usable_device(device)
    checkpoint = Checkpoint(folder)
    with quiet(), explained(str(folder), local=True):
        config = AutoConfig.from_pretrained(folder)
        del config.quantization_config
        kind = model_kind(str(folder), config)
        with init_empty_weights(include_buffers=False):
            model = auto_class(kind).from_config(config, dtype=torch.float32)
        model.tie_weights()  # again: without weights each of them was registered apart
        take_apart(model)
        checkpoint.rename(DiskNames(model))
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    builder = _Builder(checkpoint, model, target.type, kernels)
    builder.replace_all()
    builder.fill_the_rest(may_lack_pooler=kind == "encoder")
    model.eval().requires_grad_(False).to(target)
    replaced = Replaced() if target.type != "cpu" else replace(model, causal=kind == "causal")
    return Runnable(model, tokenizer, builder.chosen, kind, target, replaced)


class _Builder:
    """Replaces the modules of one model."""

    def __init__(
        self, checkpoint: Checkpoint, model: nn.Module, device: str, kernels: tuple[Kernel, ...] | None
    ) -> None:
        self.checkpoint, self.model, self.device, self.kernels = checkpoint, model, device, kernels
        self.chosen: dict[str, Chosen] = {}
        self.modules = {name: module for name, module in model.named_modules() if _is_replaced(module)}
        self.uses: dict[int, list[str]] = {}
        for name, module in self.modules.items():
            self.uses.setdefault(id(module.weight), []).append(name)
        self._halves: dict[int, HalfWeight] = {}

    def replace_all(self) -> None:
        """Every Linear and embedding, siblings with one input together."""
        done: set[str] = set()
        for name, module in self.modules.items():
            if name in done:
                continue
            uses = tuple(self.uses[id(module.weight)])
            siblings = self._siblings(name) if len(uses) == 1 else ()
            if siblings:
                self._join(siblings)
                done.update(siblings)
                continue
            stored = self._stored((uses,))
            for use in uses:
                self._put(use, stored)
            done.update(uses)

    def fill_the_rest(self, may_lack_pooler: bool) -> None:
        """Norms, biases of other modules, saved buffers: as float32."""
        wanted = [name for name, tensor in self.model.state_dict().items() if tensor.is_meta]
        missing = [name for name in wanted if name not in self.checkpoint.files]
        if missing and may_lack_pooler and drop_missing_pooler(self.model, missing):
            wanted = [name for name in wanted if name not in missing]
        for name in wanted:
            parent, _, leaf = name.rpartition(".")
            value = self.checkpoint.tensor(name)
            value = value.float() if value.is_floating_point() else value
            owner = self.model.get_submodule(parent)
            if leaf in owner._parameters:
                owner._parameters[leaf] = nn.Parameter(value, requires_grad=False)
            else:
                owner._buffers[leaf] = value

    def _siblings(self, name: str) -> tuple[str, ...]:
        """Full names of the Linears that run with this one, itself first; empty if it runs alone."""
        parent, _, leaf = name.rpartition(".")
        for leaves in TOGETHER:
            names = tuple(f"{parent}.{other}" for other in leaves)
            if leaf != leaves[0] or any(type(self.modules.get(other)) is not nn.Linear for other in names):
                continue
            alike = {(self._scheme((other,)), self.modules[other].in_features) for other in names}
            shared = any(len(self.uses[id(self.modules[other].weight)]) > 1 for other in names)
            biases = {self.modules[other].bias is None for other in names}
            if len(alike) == len(biases) == 1 and not shared:
                return names
        return ()

    def _join(self, names: tuple[str, ...]) -> None:
        stored = self._stored(tuple((name,) for name in names))
        biases = [self._bias(name) for name in names]
        bias = None if biases[0] is None else torch.cat([each for each in biases if each is not None])
        joined = Joined(QuantLinear(stored, bias), [self.modules[name].out_features for name in names])
        for index, name in enumerate(names):
            _set(self.model, name, Part(joined, index))

    def _put(self, name: str, stored: StoredWeight) -> None:
        module = self.modules[name]
        if isinstance(module, nn.Embedding):
            _set(self.model, name, QuantEmbedding(stored, float(getattr(module, "embed_scale", 1.0))))
        else:
            _set(self.model, name, QuantLinear(stored, self._bias(name)))

    def _bias(self, name: str) -> Tensor | None:
        return None if self.modules[name].bias is None else self.checkpoint.tensor(f"{name}.bias").float()

    def _scheme(self, uses: tuple[str, ...]) -> Scheme | None:
        return next(filter(None, (self.checkpoint.scheme(use, self.modules[use]) for use in uses)), None)

    def _stored(self, weights: tuple[tuple[str, ...], ...]) -> StoredWeight:
        """One weight, or several below each other; each given by the names of its uses."""
        scheme = self._scheme(weights[0])
        if scheme is None:
            return self._half(weights)
        codes = [self.checkpoint.quantized(uses, scheme, tuple(self.modules[uses[0]].weight.shape)) for uses in weights]
        weight = _below_each_other(codes)
        rows, columns = weight.codes.shape
        layer = Layer(scheme.format, rows, columns, scheme.int8_inputs)
        kernel, why = choose(layer, self.device, self.kernels)
        for name in (use for uses in weights for use in uses):
            self.chosen[name] = Chosen(kernel.name, layer.name, why)
        return QuantizedWeight(weight, layer, kernel, _exact_dtype(weight.scale))

    def _half(self, weights: tuple[tuple[str, ...], ...]) -> StoredWeight:
        found = []
        for uses in weights:
            owner = next((use for use in uses if f"{use}.weight" in self.checkpoint.files), uses[0])
            found.append(self.checkpoint.tensor(f"{owner}.weight"))
        weight = torch.cat(found) if len(found) > 1 else found[0]
        expected = (sum(self.modules[uses[0]].weight.shape[0] for uses in weights), *found[0].shape[1:])
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
    )


def _exact_dtype(scale: Tensor) -> torch.dtype:
    """The 16-bit dtype in which scales were stored, else float32."""
    return next((dtype for dtype in HALF if torch.equal(scale.to(dtype).float(), scale)), torch.float32)


def _is_replaced(module: nn.Module) -> bool:
    """Linears and embeddings whose forward is known: torch's own, or scaled by `embed_scale`."""
    if isinstance(module, nn.Linear):
        return type(module).forward is nn.Linear.forward
    return isinstance(module, nn.Embedding) and (
        type(module).forward is nn.Embedding.forward or hasattr(module, "embed_scale")
    )


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def _place(tensor: Tensor) -> int:
    """The same for tensors that share memory; oneDNN's opaque copies share theirs with none."""
    return id(tensor) if tensor.is_mkldnn else tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> int:
    """Of a tensor's elements."""
    return tensor.numel() * tensor.element_size()
