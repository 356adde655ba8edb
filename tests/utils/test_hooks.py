"""Hooks go, whatever happens while they are on."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from natprec.utils.hooks import attached, watch_gradient


@pytest.mark.parametrize("fails", [False, True])
def test_hooks_are_off_afterwards(fails: bool) -> None:
    layer, calls = nn.Linear(2, 2), []
    handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for _ in range(2)]

    def run() -> None:
        with attached(handles):
            layer(torch.ones(1, 2))
            if fails:
                raise KeyError("broken")

    if fails:
        with pytest.raises(KeyError, match="broken"):
            run()
    else:
        run()
    layer(torch.ones(1, 2))
    assert len(calls) == 2


@pytest.mark.parametrize(
    "made", [lambda x: x * 2, lambda x: (x * 2).view(4, 2), lambda x: (x * 2)[:2]], ids=["whole", "view", "part"]
)
def test_a_watched_graph_is_freed(made: Callable[[Tensor], Tensor]) -> None:
    """A hook that held the tensor would keep the outputs of all layers that were watched."""
    seen: list[Tensor] = []
    output = made(torch.ones(2, 4, requires_grad=True))
    kept = weakref.ref(output)
    watch_gradient(output, seen.append)
    output.sum().backward()
    assert torch.equal(seen[0], torch.ones_like(output))
    del output
    assert kept() is None
