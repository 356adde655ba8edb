"""Where a model's weights are: all in memory, or on disk until their turn comes.

Whatever computes says which parameters it needs, `with weights.hold(parameters):`, and gets the original values as
float32. What is done to a held parameter's `data` is gone when it is released: in memory it has its values back, by
reference. On disk a parameter that is not held is hollow: it has its shape, dtype and device, but one NaN stands for
all its values, so that it takes no memory and a use outside of `hold` cannot pass unnoticed.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from natprec.errors import ModelError
from natprec.models.read_ahead import ReadAhead
from natprec.utils.launches import fetched
from natprec.utils.memory import give_back, release_freed


class Stored(Protocol):
    """Tensors of a checkpoint by the model's own names."""

    def tensor(self, name: str) -> Tensor:
        """One tensor in its stored dtype, on the CPU; it may be a view of the file."""


class InMemory:
    """All weights are there, always.

    Attributes:
        dtypes: name → stored dtype of tensors that are an exception in their checkpoint: float32 among 16 bits.
    """

    whole = True

    def __init__(self) -> None:
        self.dtypes: dict[str, torch.dtype] = {}
        self._held: set[int] = set()

    @contextlib.contextmanager
    def hold(self, parameters: Iterable[nn.Parameter], upcoming: Iterable[nn.Parameter] = ()) -> Iterator[None]:
        """Within the block these parameters may be changed; it may be entered again for some of them."""
        taken = [(each, each.data) for each in parameters if id(each) not in self._held]
        self._held.update(id(parameter) for parameter, _ in taken)
        try:
            yield
        finally:
            for parameter, values in taken:
                parameter.data = values
                self._held.discard(id(parameter))

    def original(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The parameter's values."""
        return parameter.detach()

    def passing(self, always: Sequence[nn.Parameter], blocks: Sequence[nn.Module]) -> Any:
        """Nothing to do."""
        return contextlib.nullcontext()


class OnDisk:
    """Weights are read when they are needed, and forgotten afterwards.

    Attributes:
        dtypes: as those of `InMemory`.
    """

    whole = False

    def __init__(self, model: nn.Module, stored: Stored, device: torch.device | str = "cpu") -> None:
        """Make every parameter of a model on the meta device hollow; ties stay ties."""
        release_freed()
        self.stored = stored
        self.read_ahead = None if torch.device(device).type == "cpu" else ReadAhead(stored)
        self.dtypes: dict[str, torch.dtype] = {}
        self._names: dict[int, str] = {}
        self._held: Counter[int] = Counter()
        self._checked: set[int] = set()
        made: dict[int, nn.Parameter] = {}
        for prefix, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is None:
                    continue
                if id(parameter) not in made:
                    made[id(parameter)] = nn.Parameter(_hollow(parameter.shape, device), requires_grad=False)
                    self._names[id(made[id(parameter)])] = f"{prefix}.{name}".removeprefix(".")
                module._parameters[name] = made[id(parameter)]
        self._kept_alive = [*made.values()]  # `_names` knows them by their identity

    @contextlib.contextmanager
    def hold(self, parameters: Iterable[nn.Parameter], upcoming: Iterable[nn.Parameter] = ()) -> Iterator[None]:
        """Within the block these parameters have their values; it may be entered again for some of them.

        Args:
            upcoming: those that are likely held next; for a GPU they are read from now on.
        Raises:
            ModelError: a tensor holds NaN or Inf, or its file has gone.
        """
        wanted = list({id(parameter): parameter for parameter in parameters}.values())
        counted: list[nn.Parameter] = []
        new: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter in wanted:
                if not self._held[id(parameter)]:
                    value = self._values(parameter)
                    parameter.data = value
                    new.append((parameter, value))
                self._held[id(parameter)] += 1
                counted.append(parameter)
            self._check(new)
            if self.read_ahead is not None and (next_ones := [each for each in upcoming if not self._held[id(each)]]):
                self.read_ahead.expect([self._names[id(each)] for each in next_ones])
            yield
        finally:
            for parameter in counted:
                self._held[id(parameter)] -= 1
            done = [parameter for parameter in counted if not self._held[id(parameter)]]
            for parameter in done:
                parameter.data = _hollow(parameter.shape, parameter.device)
            if done:
                give_back()

    def original(self, name: str, parameter: nn.Parameter) -> Tensor:
        """The parameter's values as they are stored."""
        return self.stored.tensor(name)

    @contextlib.contextmanager
    def passing(self, always: Sequence[nn.Parameter], blocks: Sequence[nn.Module]) -> Iterator[None]:
        """While the whole model runs: each block's weights are there from its call to its return."""
        with contextlib.ExitStack() as rest:
            rest.enter_context(self.hold(always))
            inside = contextlib.ExitStack()
            rest.callback(lambda: inside.close())

            following = dict(itertools.pairwise(blocks))

            def enter(module: nn.Module, _: Any) -> None:
                upcoming = following[module].parameters() if module in following else ()
                inside.enter_context(self.hold(module.parameters(), upcoming))

            for block in blocks:
                rest.callback(block.register_forward_pre_hook(enter).remove)
                rest.callback(block.register_forward_hook(lambda *_: inside.close()).remove)
            yield

    def _values(self, parameter: nn.Parameter) -> Tensor:
        """Float32, on the parameter's device, in memory of its own; a GPU gets them as stored, and widens them."""
        name = self._names[id(parameter)]
        if self.read_ahead is None:
            value = self.stored.tensor(name).to(parameter.device, torch.float32, copy=True)
        else:
            value = self.read_ahead.take(name).to(parameter.device, non_blocking=True).float()
        if value.shape != parameter.shape:
            raise wrong_shape(name, value.shape, parameter.shape)
        return value

    def _check(self, new: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        """Refuse NaN and Inf in values that are there for the first time; the device is waited for once."""
        new = [(parameter, value) for parameter, value in new if id(parameter) not in self._checked]
        finite = fetched([torch.isfinite(value).all() for _, value in new])
        for (parameter, value), fine in zip(new, finite, strict=True):
            if not fine:
                refuse_not_finite(self._names[id(parameter)], value)
        self._checked.update(id(parameter) for parameter, _ in new)


Weights = InMemory | OnDisk


@contextlib.contextmanager
def put_in(model: nn.Module, values: dict[str, Tensor]) -> Iterator[None]:
    """Within the block a model's parameters have these values, by name; then those that they had."""
    present = present_values(model)
    try:
        _assign(model, values)
        yield
    finally:
        _assign(model, present)


def present_values(model: nn.Module) -> dict[str, Tensor]:
    """Name → the values that a parameter has now, by reference."""
    return {name: parameter.data for name, parameter in model.named_parameters()}


def _assign(model: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.data = values[name]


def wrong_shape(name: str, stored: Sequence[int], wanted: Sequence[int]) -> ModelError:
    """The error for a tensor of another shape than the config says."""
    return ModelError(
        f"tensor {name!r} has shape {tuple(stored)} on disk and {tuple(wanted)} by the config; "
        "the checkpoint is damaged: download it again"
    )


def refuse_not_finite(name: str, tensor: Tensor) -> None:
    """Refuse NaN and Inf before an hour of work turns them into a result.

    Raises:
        ModelError: names the tensor and how many of its values are bad.
    """
    bad = tensor.numel() - int(torch.isfinite(tensor).sum())
    if bad:
        raise ModelError(
            f"tensor {name!r} holds {bad} values of {tensor.numel()} that are NaN or Inf; "
            "the checkpoint is damaged: download it again or use another"
        )


def _hollow(shape: torch.Size, device: torch.device | str) -> Tensor:
    """One NaN in the shape of many values."""
    return torch.full((), torch.nan, device=device).expand(shape)
