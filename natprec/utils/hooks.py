"""Hooks that are taken off again, and tensors that they hand to a model so that a gradient comes back through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from torch import Tensor


class Removable(Protocol):
    """A hook's handle."""

    def remove(self) -> None:
        """Take the hook off."""


@contextlib.contextmanager
def attached(handles: Iterable[Removable]) -> Iterator[None]:
    """Hooks that are on already are taken off at the end of the block, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def differentiable(tensor: Tensor) -> Tensor:
    """The same values, cut off from what made them, with a gradient; no leaf, since a model may change it in place."""
    return tensor.detach().requires_grad_().clone()


def watch_gradient(tensor: Tensor, watch: Callable[[Tensor], None]) -> None:
    """Call `watch` with the gradient of a tensor, also where the model goes on to change it in place (Longformer does).

    A view that is changed gets another history, of which the hooks on it are no part; those on its base stay. The hook
    must not hold the tensor: what hangs in a graph and holds it keeps the whole graph, and no collector sees that.
    """
    base, shape = tensor._base, tensor.shape
    if base is not None and base.requires_grad and base.shape.numel() == tensor.numel() and tensor.is_contiguous():
        base.register_hook(lambda gradient: watch(gradient.reshape(shape)))
    else:
        tensor.register_hook(watch)


def of_its_own(tensor: Tensor) -> Tensor:
    """The same values as another tensor, whose gradient is that of this use alone."""
    return tensor.view_as(tensor) if tensor.requires_grad else differentiable(tensor)
