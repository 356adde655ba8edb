"""Which Linears are experts, and what routes tokens to them: found by structure, and by what one forward showed.

Experts are the members of a list that are built alike and are not given the same number of tokens, or all fewer than
there are, where something routes; or what `natprec.models.experts` has taken apart. A router stands beside them: the
only matrix in a child of the module that owns the experts, with a row for each of them (it chooses) or a single row (it
weighs an expert that all tokens see). Both decide where tokens go or how much they count, are small, and are read by
engines at 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from natprec.models.experts import LinearExperts
from natprec.models.layers import layer_of, multiplies

MIN_TOKENS = 128
"""An expert that saw fewer is not measured by itself: the mean of n squares is off by √(2/n), here 1/8, as much as the
Fisher estimate itself; and a quarter of so few sequences cannot judge what GPTQ leaves."""


@dataclass(frozen=True)
class Routing:
    """The experts of a model.

    Attributes:
        containers: Linear of an expert → the module that holds all experts of its layer.
        routers: modules whose weight, of two dimensions, decides between experts or weighs one.
    """

    containers: dict[str, str] = field(default_factory=dict)
    routers: frozenset[str] = frozenset()

    def alike(self, name: str) -> tuple[str, str]:
        """What the Linear has in common with the same one of the other experts: their container, its name in each."""
        container = self.containers[name]
        return container, name.removeprefix(container + ".").partition(".")[2]


def find_routing(model: nn.Module, rows: Mapping[str, int], tokens: int) -> Routing:
    """Look for experts and their routers.

    Args:
        rows: Linear → inputs that it was given by a forward of so many tokens; those it did not reach are missing.
    """
    containers: dict[str, str] = {}
    routers: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, LinearExperts):
            members = [f"{name}.{number}" for number in range(module.num_experts)]
        elif isinstance(module, nn.ModuleList) and _routed(name, module, rows, tokens):
            members = [f"{name}.{number}" for number in range(len(module))]
        else:
            continue
        own = set(_routers(model, name, len(members)))
        if not own and not isinstance(module, LinearExperts):
            continue  # one for each depth at which a shared block is used (Zamba2's adapters)
        for member in members:
            containers |= {f"{member}.{leaf}": name for leaf in _linears(model.get_submodule(member))}
        routers |= own
    return Routing(containers, frozenset(routers))


def _linears(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name → shape, of those inside."""
    layers = {name: layer_of(each) for name, each in module.named_modules() if multiplies(each)}
    return {name: each.shape for name, each in layers.items() if each is not None}


def _routed(name: str, members: nn.ModuleList, rows: Mapping[str, int], tokens: int) -> bool:
    """Whether a list's members are alike and divide the tokens among them."""
    inside = [_linears(member) for member in members]
    if len(members) < 2 or not inside[0] or any(other != inside[0] for other in inside):
        return False
    given = [[rows.get(f"{name}.{number}.{leaf}", 0) for number in range(len(members))] for leaf in inside[0]]
    return all(any(each) and (len(set(each)) > 1 or max(each) < tokens) for each in given)


def _routers(model: nn.Module, container: str, experts: int) -> Iterator[str]:
    owner, _, own = container.rpartition(".")
    for child, module in model.get_submodule(owner).named_children():
        matrices = [
            (name, parameter)
            for name, each in module.named_modules()
            for leaf, parameter in each.named_parameters(recurse=False)
            if leaf == "weight" and parameter.dim() == 2
        ]
        if child != own and len(matrices) == 1 and len(matrices[0][1]) in (1, experts):
            yield ".".join(part for part in (owner, child, matrices[0][0]) if part)
