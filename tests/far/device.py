"""A device of its own, 'far', whose memory the CPU cannot read: what a GPU is to a program, without one.

Its tensors keep their values in CPU tensors that nothing else sees. Each operation on them is counted, each copy to or
from the CPU, and each time the CPU waits for a value; an operation on tensors of both devices is refused, as on CUDA.
It is registered with torch for good, so that it belongs into a process of its own.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._pytree import tree_leaves, tree_map

NAME = "far"

WAITS = {
    "_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "unique_consecutive", "equal",
    "is_nonzero", "repeat_interleave", "bincount",
}  # fmt: skip
"""Operations whose result, or whose shape, the CPU has to know before it goes on."""

FREE = {
    "view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "detach", "unsqueeze", "squeeze",
    "as_strided", "split", "split_with_sizes", "diagonal", "alias", "unbind", "unfold", "lift_fresh", "empty_like",
    "new_empty", "resize_", "_reshape_alias", "narrow", "view_as", "unflatten", "new_empty_strided",
}  # fmt: skip
"""Operations that launch nothing: they give the same memory another shape, or take memory."""


@dataclass
class Counts:
    """What a device was asked for.

    Attributes:
        operations: name → launched.
        waits: name → the CPU waited for the device.
        down, up: copies to and from the CPU; what goes down is waited for, too.
    """

    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    down: int = 0
    up: int = 0

    def to_json(self) -> dict[str, Any]:
        """Sums, and the operations by name."""
        return {
            "operations": self.operations.total(), "waits": self.waits.total() + self.down, "down": self.down,
            "up": self.up, "by_name": dict(self.operations.most_common()),
        }  # fmt: skip


_COUNTING: list[Counts] = []


@contextlib.contextmanager
def counting() -> Iterator[Counts]:
    """Count within the block."""
    counts = Counts()
    _COUNTING.append(counts)
    try:
        yield counts
    finally:
        _COUNTING.remove(counts)


class Far(torch.Tensor):
    """A tensor on the device; `raw` has its values."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Far:
        """Of values that are its own from now on."""
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.raw = raw
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({self.raw})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Results are what the device makes of them; who is given another's data has its values."""
        if getattr(func, "__name__", "") == "__set__" and getattr(func, "__self__", None) is torch.Tensor.data:
            args[0].raw = args[1].raw
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and count."""
        return _dispatched(func, args, kwargs or {})


def _dispatched(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    if name == "copy_":
        return _copied(args[0], args[1])
    device = kwargs.get("device")
    if device is not None and torch.device(device).type == "cpu":
        _count("down")
        return func(*tree_map(_raw, args), **tree_map(_raw, kwargs))
    near = [each for each in given if not isinstance(each, Far) and each.dim()]
    if near and name not in ("index", "index_put", "index_put_", "_index_put_impl_"):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device, but found {NAME} and cpu")
    for _ in near:
        _count("up")
    if name not in FREE:
        _count(name)
    indexed = name in ("index", "index_put", "index_put_", "_index_put_impl_")
    masks = indexed and any(each is not None and each.dtype == torch.bool for each in args[1])
    if name in WAITS or masks:
        _waited(name)
    known = {id(each.raw): each for each in given if isinstance(each, Far)}
    given_kwargs = {**kwargs, "device": torch.device("cpu")} if device is not None else kwargs
    result = func(*tree_map(_raw, args), **tree_map(_raw, given_kwargs))

    def wrapped(each: Any) -> Any:
        if not isinstance(each, Tensor) or isinstance(each, Far):
            return each
        own = known.get(id(each))
        if own is not None and own.shape != each.shape:
            raise RuntimeError(f"{func} changes a shape, which this device cannot")
        return Far(each) if own is None else own

    return tree_map(wrapped, result)


def _copied(into: Tensor, source: Tensor) -> Tensor:
    if isinstance(into, Far) and isinstance(source, Far):
        _count("copy_")
    else:
        _count("up" if isinstance(into, Far) else "down")
    _raw(into).copy_(_raw(source))
    return into


def _raw(each: Any) -> Any:
    return each.raw if isinstance(each, Far) else each


def _count(name: str) -> None:
    for counts in _COUNTING:
        if name in ("up", "down"):
            setattr(counts, name, getattr(counts, name) + 1)
        else:
            counts.operations[name] += 1


def _waited(name: str) -> None:
    for counts in _COUNTING:
        counts.waits[name] += 1


class _Module(backend_registration._DummyBackendModule):  # type: ignore[misc]
    """What `torch.far` is: one device without a random state."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.empty(0)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def _empty(size: Any, dtype: Any = None, layout: Any = None, device: Any = None, *_: Any, **__: Any) -> Far:
    return Far(torch.empty(size, dtype=dtype or torch.get_default_dtype()))


def _arange(start: Any, end: Any, step: Any = 1, *, dtype: Any = None, **_: Any) -> Far:
    _count("arange")
    return Far(torch.arange(start, end, step, dtype=dtype))


def _eye(*sizes: int, dtype: Any = None, **_: Any) -> Far:
    _count("eye")
    return Far(torch.eye(*sizes, dtype=dtype))


def _empty_strided(size: Any, stride: Any, dtype: Any = None, *_: Any, **__: Any) -> Far:
    return Far(torch.empty_strided(size, stride, dtype=dtype or torch.get_default_dtype()))


def register() -> Callable[[], None]:
    """Make the device known to torch, once; what is returned has to be kept."""
    backend_registration._setup_privateuseone_for_python_backend(NAME, _Module())
    library = torch.library.Library("aten", "IMPL")
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("arange.start_step", _arange, "PrivateUse1")
    library.impl("arange.start", _arange, "PrivateUse1")
    library.impl("arange", lambda end, **more: _arange(0, end, **more), "PrivateUse1")
    library.impl("eye", _eye, "PrivateUse1")
    library.impl("eye.m", _eye, "PrivateUse1")
    library.impl("_copy_from", lambda source, into, wait=False: _copied(into, source), "PrivateUse1")
    return lambda: library._destroy()
