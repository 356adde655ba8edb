"""The interface of a distortion D (T1), which is a plug-in: what is compared, how far apart two of it
are, and a random scalar whose gradient tells the curvature of D where both are equal.

Everything else (curves, plans, tolerances, verdicts) counts in the unit that D has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from natprec.config import MARGIN
from natprec.tasks import Samples, Task
from natprec.utils.seeds import derived


class Distortion(ABC):
    """D(φ(x), φ(Q(x))), averaged over the terms of a sequence: its tokens, or the sequence as a whole.

    Attributes:
        name: in files and on the command line.
        label: in tables, before 'predicted' and 'measured'.
        unit: of D and of every tolerance.
        term: what D is averaged over, in the plural.
        task: whose models put out what it compares; None: any model of which `output` can be had.
        falls: whether it can be less than 0.
        margin: of a tolerance, what plans keep back for samples of other kinds than were measured on.
    """

    name: str
    label: str
    unit: str
    term: str
    task: Task | None = None
    falls: bool = False
    margin: float = MARGIN

    @abstractmethod
    def output(self, model: nn.Module, samples: Samples) -> Tensor:
        """What is compared, of a batch: (batch, terms, size)."""

    @abstractmethod
    def terms(self, length: int) -> int:
        """Terms of a sample of `length` positions."""

    @abstractmethod
    def draw(self, output: Tensor, sequences: Sequence[int], seed: int) -> Tensor:
        """A random scalar s with ½ E[(∇s · δ)²] = D summed over terms, to second order in a change δ.

        Args:
            output: (batch, terms, size), with gradients.
            sequences: indices of the batch's sequences; each draws on its own (see `for_each`), so that
                the same numbers come out however sequences are batched.
        """

    @abstractmethod
    def between(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """D of each term.

        Args:
            reference: (batch, terms, size); quantized: the same.
            samples: the batch that both models read.
        Returns:
            (batch, terms), in `unit`, float64.
        """

    def slope(self, reference: Tensor, quantized: Tensor, samples: Samples) -> Tensor:
        """A scalar to go down by gradient: the mean of `between`, or what is faster and has the same gradient."""
        return self.between(reference, quantized, samples).mean()


def for_each(sequences: Sequence[int], seed: int, random: Callable[[torch.Generator], Tensor]) -> Tensor:
    """What `random` draws for each sequence, stacked; on the CPU."""
    return torch.stack([random(torch.Generator().manual_seed(derived(seed, index))) for index in sequences])
