"""A text on its way through a model's blocks: the hidden states of all its batches, after one block at a time.

What has been reached can be kept in a file, from which a later run goes on. Of several processes each has a share of
the samples; the file holds all of them, so that any number of processes can go on.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from natprec.models.differentiation import differentiate
from natprec.models.segments import Context, SegmentedModel
from natprec.models.shares import Share
from natprec.tasks import Samples
from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY
from natprec.utils.progress import Advance


def state_key(*parts: str) -> str:
    """What a state is of, in 16 hex digits: one with another key is not gone on from."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


class HiddenStates:
    """Hidden states of every batch.

    Attributes:
        samples: the text, or this process's share of it; `share` says which that is.
        segment: the last one that the text has passed; None: not even the prefix.
        reached: the last one that an earlier run had passed.
    """

    def __init__(
        self,
        segmented: SegmentedModel,
        samples: Samples,
        file: Path | None = None,
        key: str = "",
        label: str = "",
        share: Share | None = None,
    ) -> None:
        """Begin before the prefix.

        Args:
            samples: of all processes.
            file: of the state, written by `keep`; one with another `key` is not used.
            label: of these states in the file, if there are several.
            share: of this process; default: whole batches.
        """
        self.share = share or Share.of(samples, segmented.workers)
        self.samples = self.share.take(samples)
        self.segment: int | None = None
        self._segmented, self._file, self._key, self._label = segmented, file, key, label
        self._twin: HiddenStates | None = None
        self._everything = samples
        self._hidden: list[Tensor] = []
        self._contexts: list[list[Context]] = []
        self.reached: int | None = self._found()

    def twin(self) -> HiddenStates:
        """The same text before the prefix, for other weights of the model; `keep` keeps its state too.

        After a segment that is kept both have passed it.
        """
        self._twin = HiddenStates(self._segmented, self._everything, self._file, self._key, "twin.", self.share)
        return self._twin

    @torch.no_grad()
    def show(self, segment: int, watched: Sequence[str], advance: Advance = lambda step: None) -> None:
        """Let the text into a segment, which changes nothing, for hooks that see what some modules are given."""
        for number, batch in enumerate(self.share.batches):
            hidden = self._hidden[number] if self._hidden else None
            contexts = self._contexts[number] if self._hidden else []
            self._segmented.show(segment, hidden, self.samples[batch], contexts, watched)
            advance(f"{segment} forward")

    @torch.enable_grad()
    def back(self, segment: int, gradient: Tensor | None, seed: int = 0, advance: Advance = lambda step: None) -> None:
        """As `show`, of a whole block or the last segment, and the way back to its input, for hooks that watch that.

        Args:
            gradient: at a block's output, (sequences, time, hidden); the last segment draws its own, by `seed`.
        """
        for number, batch in enumerate(self.share.batches):
            hidden = self._hidden[number].detach().requires_grad_()
            known = None if gradient is None else gradient[batch]
            given = (hidden, self.samples[batch], self._contexts[number], known)
            differentiate(self._segmented, segment, *given, self.share.numbers[batch], seed, self._segmented.gathering)
            advance(f"{segment} backward")

    @torch.no_grad()
    def through(self, segment: int, advance: Advance = lambda step: None) -> None:
        """Go on through the prefix (-1) or a block; from behind the prefix at once to where an earlier run was."""
        for number, batch in enumerate(self.share.batches):
            rows = self.samples[batch]
            if segment < 0:
                hidden, contexts = self._segmented.prefix(rows)
                self._hidden.append(hidden)
                self._contexts.append(contexts)
            else:
                self._hidden[number] = self.next(segment, number)
                advance(f"{segment} forward")
        self.segment = segment
        if segment < 0 and self.reached is not None:
            self._jump()

    def state(self, number: int) -> Tensor:
        """Of a batch, after the last segment that the text has passed: (batch, time, hidden)."""
        return self._hidden[number]

    def next(self, segment: int, number: int) -> Tensor:
        """What the next block makes of a batch, (batch, time, hidden), which changes nothing."""
        return self._segmented.block(segment, self._hidden[number], self._contexts[number][segment])

    def has_passed(self, segment: int) -> bool:
        """Whether an earlier run went through a block, so that this one need not."""
        return self.reached is not None and 0 <= segment <= self.reached

    def output(self, number: int) -> Tensor:
        """The model's output for a batch, from that of its last block: (batch, terms, size)."""
        rows = self.samples[self.share.batches[number]]
        return self._segmented.suffix(self._hidden[number] if self._hidden else None, rows)

    def keep(self) -> None:
        """Write the state of all processes to its file, in place of an earlier one.

        Raises:
            OutputError: the disk is full.
        """
        assert self._file is not None
        metadata = {KEY: "hidden states", "key": self._key, "stage": str(self.segment)}
        tensors = self._tensors() | (self._twin._tensors() if self._twin else {})
        if self.share.workers.first:
            write_bytes(self._file, save(tensors, metadata))

    def _tensors(self) -> dict[str, Tensor]:
        batches = self.share.batch_by_batch(self._hidden)
        return {f"{self._label}{number}": hidden.cpu().contiguous() for number, hidden in enumerate(batches)}

    def _jump(self) -> None:
        assert self._file is not None
        with safe_open(self._file, "pt") as opened:
            for place, (number, hidden) in enumerate(zip(self.share.own, self._hidden, strict=True)):
                found = opened.get_tensor(f"{self._label}{number}")
                self._hidden[place] = self.share.of_batch(number, found).to(hidden.device)
        self.segment = self.reached

    def _found(self) -> int | None:
        if self._file is None or not self._file.is_file():
            return None
        with safe_open(self._file, "pt") as opened:
            metadata = opened.metadata() or {}
        return int(metadata["stage"]) if metadata.get("key") == self._key else None


@contextlib.contextmanager
def passed(
    segmented: SegmentedModel,
    samples: Samples,
    advance: Advance,
    file: Path | None = None,
    key: str = "",
    share: Share | None = None,
) -> Iterator[Callable[[Samples], Tensor]]:
    """What gives the output for one batch after another; all blocks are passed before, each read once.

    Args:
        samples: of all processes, of which this one takes its own.
        file: of the state after each block.
        share: of this process; default: whole batches.
    """
    states = HiddenStates(segmented, samples, file, key, share=share)
    for segment in segmented.segments[:-1]:
        if states.has_passed(segment):
            continue
        with segmented.hold(segment), segmented.judging():
            states.through(segment, advance)
        if segment >= 0 and file is not None:
            states.keep()
    numbers = iter(range(len(states.share.batches)))
    with segmented.hold(len(segmented.blocks)):
        yield lambda rows: states.output(next(numbers))
