"""Hooks go, whatever happens while they are on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from natprec.utils.hooks import attached


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
