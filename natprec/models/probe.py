"""What one forward of a whole model shows of its structure: which module gets which tensor, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from natprec.models.layers import layer_of, multiplies
from natprec.utils.hooks import attached


@dataclass(frozen=True)
class Probe:
    """What one forward of the whole model showed.

    Attributes:
        order: names of the leaf modules with weights in the order of their first call.
        repeated: those that were called more than once.
        input_of: module name → an identity shared by modules that were called with one same tensor.
        rows: Linear → inputs that it was given.
        mixed: whether some Linear was given no row for each token of each sequence, in their order: rows of no
            sequence, or several layers of them.
        returned: of each block how many values its tuple has, the hidden state first; 0 where it returns that alone.
        beside: whether some block returned something that it was not given, besides the hidden state.
        chained: whether each block's input was the previous block's output, and nothing else that it returned.
        read: modules whose weight an operation took that was not their own: what it does there, no hook sees.
    """

    order: tuple[str, ...]
    repeated: frozenset[str]
    input_of: dict[str, int]
    rows: dict[str, int]
    mixed: bool
    returned: tuple[int, ...]
    beside: bool
    chained: bool
    read: frozenset[str] = frozenset()


@torch.no_grad()
def probed(
    model: nn.Module,
    blocks: list[nn.Module],
    shape: torch.Size,
    run: Callable[[], object],
    convolutions: bool = False,
    beside: int = 0,
) -> Probe:
    """One forward, `run`, of ids (batch, time), with hooks that watch which module gets which tensor.

    Args:
        beside: more positions of each sequence, of an encoder.
    """
    rows_of = (shape, shape[:1], torch.Size([shape.numel()]), torch.Size([shape[0], beside]))
    order: list[str] = []
    repeated: set[str] = set()
    inputs: dict[str, int] = {}
    rows: dict[str, int] = {}
    mixed: list[bool] = []
    seen: list[Tensor] = []  # kept alive, so that no two tensors share an identity
    outputs: list[Any] = []
    others: list[Any] = []  # what blocks returned besides, kept alive for its identity
    returned: list[int] = []
    links: list[bool] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if name in inputs:
                repeated.add(name)
            elif args and isinstance(args[0], Tensor):
                order.append(name)
                known = next((i for i, tensor in enumerate(seen) if tensor is args[0]), None)
                inputs[name] = len(seen) if known is None else known
                if multiplies(module):
                    rows[name] = args[0].shape[:-1].numel()
                    mixed.append(args[0].shape[:-1] not in rows_of)
                seen.append(args[0])

        return hook

    def link(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden = args[0] if args and isinstance(args[0], Tensor) else None
        given = {id(value) for value in (*args, *kwargs.values())}
        links.append(hidden is not None and (not outputs or hidden is outputs[-1]) and hidden.shape[:-1] == shape)
        links.append(given.isdisjoint(map(id, others)))
        values = output if isinstance(output, tuple) else (output,)
        outputs.append(values[0])
        others.extend(value for value in values[1:] if value is not None and id(value) not in given)
        returned.append(len(output) if isinstance(output, tuple) else 0)

    layers = {name: module for name, module in model.named_modules() if layer_of(module, convolutions) is not None}
    handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
    handles += [block.register_forward_hook(link, with_kwargs=True) for block in blocks]
    reads = _Reads(layers)
    with attached([*handles, *reads.handles()]), reads:
        run()
    return Probe(
        order=tuple(order),
        repeated=frozenset(repeated),
        input_of=inputs,
        rows=rows,
        mixed=any(mixed),
        returned=tuple(returned),
        beside=bool(others),
        chained=bool(blocks) and len(outputs) == len(blocks) and all(links),
        read=frozenset(reads.found),
    )


class _Reads(TorchFunctionMode):
    """Watches for operations on a module's weight while no module that owns it runs (Mamba's `dt_proj.weight`)."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._owners: dict[int, list[str]] = {}
        self._modules, self._running = modules, list[int]()
        for name, module in modules.items():
            self._owners.setdefault(id(module.weight), []).append(name)

    def handles(self) -> list[Any]:
        """Hooks that tell which weight's owner is running."""

        def enter(module: nn.Module, _: Any) -> None:
            self._running.append(id(module.weight))

        def leave(*_: Any) -> None:
            self._running.pop()

        several = self._modules.values()
        return [handle for module in several for handle in (
            module.register_forward_pre_hook(enter), module.register_forward_hook(leave),
        )]  # fmt: skip

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """What gives no tensor (a shape, a dtype, a device) has not used the values."""
        result = func(*args, **(kwargs or {}))
        if any(isinstance(each, Tensor) for each in (result if isinstance(result, tuple | list) else (result,))):
            for value in (*args, *(kwargs or {}).values()):
                for each in value if isinstance(value, tuple | list) else (value,):
                    if isinstance(each, nn.Parameter) and id(each) not in self._running:
                        self.found.update(self._owners.get(id(each), ()))
        return result
