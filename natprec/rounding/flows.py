"""What flows through a rounded model: inputs of Linears, keys and values, rounded by hooks as an engine would."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from natprec.models.activation_sites import round_inputs, round_site
from natprec.models.weight_sites import Site
from natprec.solver import Plan
from natprec.utils.hooks import attached


def round_flows(model: nn.Module, activations: Sequence[Site], plan: Plan, part: float = 1.0) -> list[Any]:
    """Round all that a plan rounds from now on; returns the hooks, to remove.

    Args:
        activations: the model's sites that are no weights.
        part: how much of the rounding's errors to make.
    """
    largest = {fused_group: choice.largest for fused_group, choice in plan.inputs.items()}
    hooks = round_inputs(model, activations, plan.rounded_inputs, largest, part)
    if plan.cache is not None:
        for site in (site for site in activations if site.role == "cache"):
            hooks += round_site(model, site, plan.cache.format, plan.cache.reach(site.name), part)
    return hooks


@contextlib.contextmanager
def flows_rounded(model: nn.Module, activations: Sequence[Site], plan: Plan, part: float = 1.0) -> Iterator[None]:
    """The same within a block."""
    with attached(round_flows(model, activations, plan, part)):
        yield
