"""The model as segments, prefix → blocks → suffix, found by structure, so that it can be run piece by piece.

The list of blocks is the `nn.ModuleList` with the most Linear weights whose members each receive
the previous one's output; one probing forward verifies this, and a second one where a model has two such lists (a
vision tower beside a language model). Prefix and suffix need no knowledge
of the model's class: they are the model's own forward with the blocks passed through. A model
without such a list, or whose blocks share weights or hand on more than a hidden state, is one suffix: the same code
then works on the whole of it. Where weights lie on disk
(see `natprec.models.weights`), each segment holds its own while it runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from natprec.distortions import Distortion, OutputKL
from natprec.models.layers import layer_of, multiplies
from natprec.models.probe import probed
from natprec.models.routing import Routing, find_routing
from natprec.models.weights import InMemory, Weights
from natprec.tasks import Samples
from natprec.utils.hooks import attached
from natprec.utils.matmul import products_in
from natprec.utils.workers import Workers

Context = tuple[tuple[Any, ...], dict[str, Any]]
"""What a block is called with besides the hidden state: positional and keyword arguments."""


@dataclass
class _Patch:
    """Replacements of the blocks' forward, and what they saw."""

    contexts: list[Context] = field(default_factory=list)
    first: Tensor | None = None


class _DoneError(Exception):
    """Raised where what comes next is not needed."""


class SegmentedModel:
    """Runs a model's prefix, blocks and suffix one at a time; its output is what a distortion compares.

    Attributes:
        distortion: reads the output; KL of the next token unless said otherwise.
        weights: where they are.
        products: what matrix products are computed in where the model runs for statistics: see `gathering`.
        convolutions: whether its convolutions are sites.
        shown: the small sample by which the blocks were found.
        workers: the processes that share what is done with the model; one alone unless set.
        block_names: module paths of the blocks; empty when the model has no such list.
        routing: its experts, if it has any.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Samples,
        distortion: Distortion | None = None,
        weights: Weights | None = None,
        products: torch.dtype = torch.float32,
        convolutions: bool = False,
    ) -> None:
        """Find the blocks and verify them on a small sample."""
        self.model = model
        self.distortion = distortion or OutputKL()
        self.weights = weights or InMemory()
        self.products, self.convolutions, self.shown = products, convolutions, probe
        self.workers = Workers()
        self._last = -2  # the segment that was held last
        for found in _lists(model) or [("", [])]:
            name, self.blocks = found
            self.probe = probed(model, self.blocks, probe.shape, lambda: self.output(probe), convolutions, probe.beside)
            if self.probe.chained and not self._shared():
                break
        else:
            self.blocks = []
        self.block_names = [f"{name}.{index}" for index in range(len(self.blocks))]
        without = not any(self.block_of(name) for name in self.probe.order)  # layers of kinds that natprec knows
        if self.blocks and (without or (self.probe.beside and not self._same(probe)) or self._passed_by(probe)):
            self.blocks, self.block_names = [], []
        self.routing: Routing = find_routing(model, self.probe.rows, probe.tokens)

    @property
    def routed(self) -> bool:
        """Whether some Linears are given tokens that a router has chosen, or other rows than those of each sequence.

        Their inputs do not say which sequence they are of.
        """
        return bool(self.routing.containers) or self.probe.mixed

    @property
    def together(self) -> int | None:
        """Samples of a batch whose gradients are told apart: one if `routed`; None: as many as are run at once."""
        return 1 if self.routed else None

    def output(self, samples: Samples) -> Tensor:
        """The whole model: what is compared of a batch, (batch, terms, size), for example logits."""
        with self.weights.passing(self._outside(), self.blocks):
            return self.distortion.output(self.model, samples)

    def hold(self, segment: int) -> contextlib.AbstractContextManager[None]:
        """Within the block the weights of a segment are in memory; running it and differentiating it needs them.

        Each segment that is run holds its own, so this only saves reading them again from one batch to the next. The
        segment that follows in the same direction is read meanwhile, for a GPU.
        """
        step, self._last = segment - self._last, segment
        upcoming = segment + step
        known = step in (1, -1) and upcoming in self.segments
        return self.weights.hold(self.parameters(segment), self.parameters(upcoming) if known else ())

    def gathering(self) -> contextlib.AbstractContextManager[object]:
        """Within the block the model runs for statistics alone, its products in `products`."""
        return products_in(self.products, next(self.model.parameters()).device)

    def judging(self) -> contextlib.AbstractContextManager[object]:
        """Within the block products are float32's, as fast as they can be had."""
        return products_in(torch.float32, next(self.model.parameters()).device)

    @property
    def segments(self) -> range:
        """All segments by number, in the order in which they run: prefix (-1), blocks, suffix; see `segment_of`."""
        return range(-1 if self.blocks else 0, len(self.blocks) + 1)

    def parameters(self, segment: int) -> list[nn.Parameter]:
        """What a segment needs; small parameters outside of the blocks are both the prefix's and the suffix's."""
        if 0 <= segment < len(self.blocks):
            return list(self.blocks[segment].parameters())
        return self._outside(segment)

    def _outside(self, segment: int | None = None) -> list[nn.Parameter]:
        """Parameters that are in no block; of one segment: without the large ones that only the other one uses."""
        inside = {id(module) for block in self.blocks for module in block.modules()}
        return [
            parameter
            for name, module in self.model.named_modules()
            if id(module) not in inside
            and (segment is None or layer_of(module, self.convolutions) is None or self.segment_of(name) == segment)
            for parameter in module.parameters(recurse=False)
        ]

    def prefix(self, samples: Samples) -> tuple[Tensor, list[Context]]:
        """The first block's input (batch, time, hidden), and every block's context."""
        with self.hold(-1), self._patched(None) as patch, contextlib.suppress(_DoneError):
            self.distortion.output(self.model, samples)
        assert patch.first is not None
        return patch.first, patch.contexts

    def block(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """One block: hidden state (batch, time, hidden) in and out."""
        arguments, keywords = context
        with self.hold(index):
            output = self.blocks[index](hidden, *arguments, **keywords)
        return output[0] if isinstance(output, tuple) else output

    def suffix(self, hidden: Tensor | None, samples: Samples) -> Tensor:
        """The output, from that of the last block; from the samples alone where there are no blocks."""
        if not self.blocks:
            return self.output(samples)
        with self.hold(len(self.blocks)), self._patched(hidden):
            return self.distortion.output(self.model, samples)

    def run(self, segment: int, hidden: Tensor | None, samples: Samples, contexts: list[Context]) -> Tensor:
        """One segment by its number (see `segment_of`), from its input; prefix and suffix also take the samples."""
        if segment == len(self.blocks):
            return self.suffix(hidden, samples)
        if segment < 0:
            return self.prefix(samples)[0]
        assert hidden is not None
        return self.block(segment, hidden, contexts[segment])

    def show(
        self, segment: int, hidden: Tensor | None, samples: Samples, contexts: list[Context], watched: Sequence[str]
    ) -> None:
        """Run a segment for hooks that see what modules are given, and no further than the last of these modules."""

        def stop(*_: Any) -> None:
            raise _DoneError

        known = segment >= 0 and not self.routed and all(name in self.probe.input_of for name in watched)
        handles = []
        if watched and known and not self.probe.repeated.intersection(watched):
            last = max(watched, key=self.probe.order.index)
            handles.append(self.model.get_submodule(last).register_forward_pre_hook(stop))
        with attached(handles), contextlib.suppress(_DoneError):
            self.run(segment, hidden, samples, contexts)

    def segment_of(self, module_name: str) -> int:
        """-1 for the prefix, the block's index, or the number of blocks for the suffix."""
        block = self.block_of(module_name)
        if block is not None:
            return self.block_names.index(block)
        if not self.blocks:
            return 0
        order = self.probe.order
        blocks = [i for i, name in enumerate(order) if self.block_of(name) is not None]
        before = module_name in order and order.index(module_name) < min(blocks)
        return -1 if before else len(self.blocks)

    def block_of(self, module_name: str) -> str | None:
        """The block that a module is, or belongs to, if any."""
        return next((name for name in self.block_names if f"{module_name}.".startswith(f"{name}.")), None)

    def _shared(self) -> bool:
        """Whether a weight of a block belongs to another block, or to what is around them, as well."""
        seen = {id(parameter) for parameter in self._outside()}
        for block in self.blocks:
            own = {id(parameter) for parameter in block.parameters()}
            if not seen.isdisjoint(own):
                return True
            seen |= own
        return False

    def _passed_by(self, samples: Samples) -> bool:
        """Whether pictures or speech also reach blocks beside the hidden state (as in layers of cross attention).

        On the way back no gradient would come that way.
        """
        floats = {name: value for name, value in samples.tensors.items() if value.is_floating_point()}
        if not floats:
            return False
        watched = {name: value.detach().clone().requires_grad_() for name, value in floats.items()}
        with torch.enable_grad():
            _, contexts = self.prefix(replace(samples, tensors={**samples.tensors, **watched}))
        return any(isinstance(each, Tensor) and each.requires_grad for each in tree_leaves(contexts))

    @torch.no_grad()
    def _same(self, samples: Samples) -> bool:
        """Whether prefix, blocks and suffix compute what the model does, although blocks return more than they hand on.

        The replaced forwards return None in its place, with which the model's own code may not be able to go on.
        """
        try:
            hidden, contexts = self.prefix(samples)
            for index, context in enumerate(contexts):
                hidden = self.block(index, hidden, context)
            return torch.equal(self.suffix(hidden, samples), self.output(samples))
        except (TypeError, ValueError, AttributeError, IndexError):
            return False

    @contextlib.contextmanager
    def _patched(self, replacement: Tensor | None) -> Iterator[_Patch]:
        """Pass the hidden state through every block; the first returns `replacement` if given, else the last stops."""
        patch = _Patch()

        def passes(index: int) -> Any:
            def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
                patch.contexts.append((args, kwargs))
                if index == 0:
                    patch.first = hidden_states
                    hidden_states = hidden_states if replacement is None else replacement
                if replacement is None and index == len(self.blocks) - 1:
                    raise _DoneError
                count = self.probe.returned[index]
                return (hidden_states, *[None] * (count - 1)) if count else hidden_states

            return forward

        for index, block in enumerate(self.blocks):
            block.forward = passes(index)
        try:
            yield patch
        finally:
            for block in self.blocks:
                del block.forward


def _lists(model: nn.Module) -> list[tuple[str, list[nn.Module]]]:
    """The two `nn.ModuleList`s in no other one that hold the most Linear weights, and their names.

    The second is none of bare layers.
    """

    def weights(blocks: nn.ModuleList) -> int:
        layers = (layer_of(module) for module in blocks.modules() if multiplies(module))
        return sum(layer.weight.numel() for layer in layers if layer is not None)

    lists: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():  # whatever holds a module comes before it
        if isinstance(module, nn.ModuleList) and not any(name.startswith(outer + ".") for outer in lists):
            lists[name] = module
    longest = sorted(lists.items(), key=lambda item: -weights(item[1]))[:2]
    found = [(name, list(blocks)) for name, blocks in longest]
    return found[:1] + [each for each in found[1:] if not any(map(multiplies, each[1]))]
