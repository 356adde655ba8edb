"""Experts that are one parameter per layer, taken apart into Linears.

transformers 5 keeps the experts of a layer as 3-D parameters, `gate_up_proj` (experts, 2 × inner, hidden) and
`down_proj` (experts, hidden, inner). What a model does with them follows one protocol, whatever its family
(`transformers.integrations.moe.use_experts_implementation`): flags say whether there is a gate, a bias, a norm behind,
and how the 3-D parameter is laid out. So the module is given Linears `0.gate_proj`, `0.up_proj`, `0.down_proj`,
`1.gate_proj`, …, which are views of the 3-D parameters where these are not transposed, and a forward that runs them;
its name, its gate and all else stay.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from natprec.errors import ModelError

FLAGS = ("has_gate", "has_bias", "is_transposed", "is_concatenated", "has_post_expert_norm")
"""What the protocol says of a layout."""

SAME = 1e-2
"""Of the largest value, how far the Linears together may be from the original; a wrong layout is as far as can be."""


@dataclass(frozen=True)
class Piece:
    """Where one expert's weight or bias lies.

    Attributes:
        fused: name of the parameter that holds those of all experts.
        expert: its number there.
        part, parts: which share of the expert's outputs; one after the other, or `interleaved`, each in its turn.
        transposed: whether the expert's matrix is (inputs, outputs).
    """

    fused: str
    expert: int
    part: int
    parts: int
    interleaved: bool
    transposed: bool

    def of(self, own: Tensor) -> Tensor:
        """Of what the fused parameter holds of this expert, `fused[expert]`; a view where its rows lie one by one."""
        rows = own.T if self.transposed and own.dim() == 2 else own
        part = rows[self.part :: self.parts] if self.interleaved else rows.chunk(self.parts)[self.part]
        return part.contiguous()


class LinearExperts(nn.Module):
    """Experts as Linears; a class of a model becomes this one and itself.

    Attributes:
        pieces: name of each parameter, `0.gate_proj.weight`, → where it came from.
    """

    num_experts: int
    pieces: dict[str, Piece]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """Tokens (tokens, hidden) through the experts chosen for each, (tokens, chosen), and their weighted sum."""
        output = torch.zeros_like(hidden_states)
        for number in top_k_index.unique().tolist():
            if number < self.num_experts:  # beyond: no expert
                tokens, places = torch.where(top_k_index == number)
                value = self._expert(number, hidden_states[tokens]) * top_k_weights[tokens, places, None]
                output.index_add_(0, tokens, value.to(output.dtype))
        return output

    def _expert(self, number: int, x: Tensor) -> Tensor:
        """One expert, (tokens, hidden) in and out."""
        own: Any = self.get_submodule(str(number))
        model: Any = self
        if model.has_gate:
            gate, up = own["gate_proj"](x), own["up_proj"](x)
            joined = torch.cat([gate, up], -1) if model.is_concatenated else torch.stack([gate, up], -1).flatten(-2)
            inner = model._apply_gate(joined)
        else:
            inner = model.act_fn(own["up_proj"](x))
        value: Tensor = own["down_proj"](inner)
        return model.post_expert_norm(value) if model.has_post_expert_norm else value


def take_apart(model: nn.Module) -> None:
    """Turn all fused experts of a model into Linears, in place; those that are Linears stay as they are.

    Raises:
        ModelError: experts that follow another protocol; names the module.
    """
    checked: set[type] = set()
    for name, module in list(model.named_modules()):
        if isinstance(module, LinearExperts) or type(module).__module__.startswith("torch."):
            continue
        if _follows_protocol(module):
            trial = None if type(module) in checked else _trial(module)
            checked.add(type(module))
            _take_apart(module)
            if trial is not None:
                _refuse_difference(name, module, trial)
        else:
            _refuse_unknown(name, module)


def linear_experts(model: nn.Module) -> Iterator[tuple[str, LinearExperts]]:
    """Modules that were taken apart, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LinearExperts):
            yield name, module


def pieces_of(model: nn.Module) -> dict[str, Piece]:
    """Parameters that were taken apart, by their names in the model; `fused` is a name in the model as it was."""
    found = {}
    for container, module in linear_experts(model):
        for name, piece in module.pieces.items():
            found[f"{container}.{name}"] = replace(piece, fused=f"{container}.{piece.fused}")
    return found


def _follows_protocol(module: nn.Module) -> bool:
    if not all(isinstance(getattr(module, flag, None), bool) for flag in FLAGS):
        return False
    first = "gate_up_proj" if module.has_gate else "up_proj"
    fused = [module._parameters.get(name) for name in (first, "down_proj")]
    return all(each is not None and each.dim() == 3 and len(each) == module.num_experts for each in fused)


def _take_apart(module: Any) -> None:
    """Replace parameters and forward."""
    gated = module.has_gate
    first = "gate_up_proj" if gated else "up_proj"
    shares = [("gate_proj", first, 0, 2), ("up_proj", first, 1, 2)] if gated else [("up_proj", first, 0, 1)]
    shares.append(("down_proj", "down_proj", 0, 1))
    fused: dict[str, nn.Parameter] = {}
    for name in (first, "down_proj"):
        fused[name] = module._parameters.pop(name)
        if module.has_bias:
            fused[f"{name}_bias"] = module._parameters.pop(f"{name}_bias")
    pieces: dict[str, Piece] = {}
    for number in range(module.num_experts):
        own = nn.ModuleDict()
        for linear, name, part, parts in shares:
            mixed = parts > 1 and not module.is_concatenated
            weight = Piece(name, number, part, parts, mixed, module.is_transposed)
            bias = replace(weight, fused=f"{name}_bias", transposed=False) if module.has_bias else None
            own[linear] = _linear(fused, weight, bias)
            pieces[f"{number}.{linear}.weight"] = weight
            if bias is not None:
                pieces[f"{number}.{linear}.bias"] = bias
        module.add_module(str(number), own)
    module.pieces = pieces
    module.__class__ = _linear_class(module.__class__)


def _linear(fused: dict[str, nn.Parameter], weight: Piece, bias: Piece | None) -> nn.Linear:
    """A Linear on its part of the fused parameters."""

    def view(piece: Piece) -> nn.Parameter:
        whole = fused[piece.fused]
        return nn.Parameter(piece.of(whole.data[piece.expert]), requires_grad=whole.requires_grad)

    values = view(weight)
    rows, columns = values.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = values
    if bias is not None:
        linear.bias = view(bias)
    return linear


@functools.cache
def _linear_class(original: type) -> type:
    return type(f"Linear{original.__name__}", (LinearExperts, original), {})


@torch.no_grad()
def _trial(module: Any) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor] | None:
    """Some tokens and what the experts make of them; None where there are no values yet."""
    weight = module.down_proj
    if weight.is_meta:
        return None
    generator = torch.Generator().manual_seed(0)
    hidden = weight.shape[2 if module.is_transposed else 1]
    first = torch.arange(min(module.num_experts, 4))
    chosen = torch.stack([first, (first + 1) % module.num_experts], 1)
    given = (
        torch.randn(len(first), hidden, generator=generator),
        chosen,
        torch.rand(chosen.shape, generator=generator),
    )
    x, index, share = (each.to(weight.device) for each in given)
    arguments = (x.to(weight.dtype), index, share.to(weight.dtype))
    return arguments, module(*arguments)


@torch.no_grad()
def _refuse_difference(name: str, module: nn.Module, trial: tuple[tuple[Tensor, Tensor, Tensor], Tensor]) -> None:
    arguments, expected = trial
    error = float((module(*arguments) - expected).abs().max())
    if bool(torch.isfinite(expected).all()) and not error <= SAME * float(expected.abs().max()):
        raise ModelError(
            f"experts {name!r}: taken apart into Linears, they compute something else (by {error:.2g} of "
            f"{float(expected.abs().max()):.2g}); their class does not do what its flags say: use another model"
        )


def _refuse_unknown(name: str, module: nn.Module) -> None:
    """Refuse parameters that hold all experts in a way that nothing describes; a router has a row per expert."""
    counts = {value for key, value in vars(module).items() if "experts" in key and type(value) is int and value > 1}
    for own, parameter in module.named_parameters(recurse=False):
        whole = parameter.dim() == 3 and parameter.shape[0] in counts
        below = parameter.dim() == 2 and any(len(parameter) > count and len(parameter) % count == 0 for count in counts)
        if whole or below:
            raise ModelError(
                f"experts {name + '.' + own!r} of shape {tuple(parameter.shape)}: {type(module).__name__} does not say "
                "how they are laid out, and they would stay at 16 bits; natprec reads experts that are Linears, and "
                "those of transformers' use_experts_implementation: use a model of such a class"
            )
