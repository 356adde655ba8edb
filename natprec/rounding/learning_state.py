"""How far learning against the end has come, and the file from which a killed run goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY

PROGRESS = "progress"
"""Tensor of that file: step, seconds, and what was judged."""

PATIENCE = 5
"""Judgments in a row that find nothing better, after which learning ends."""


@dataclass
class Progress:
    """How far learning has come.

    Attributes:
        seconds: that it took, in all runs together.
        judged: the distortion of text that was held back: of the rounding, then of each judgment.
    """

    step: int = 0
    seconds: float = 0.0
    judged: list[float] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The judgment that found the least; 0: the rounding itself."""
        return self.judged.index(min(self.judged))

    @property
    def stalled(self) -> bool:
        """Whether nothing better has been found for a while."""
        return len(self.judged) - 1 - self.best >= PATIENCE

    @property
    def gain(self) -> str:
        """What the best is below the rounding, and what that is for each minute."""
        less = self.judged[0] - min(self.judged)
        return f"{less:.3g} gained, {60 * less / max(self.seconds, 1e-9):.2g} a minute"


@dataclass(frozen=True)
class Kept:
    """Where learning goes on from: a file of all that moves, of the best so far, and of what the caller adds.

    Attributes:
        file: None: nothing is kept.
        key: of the model, plan, text and options; a file with another one is not used.
    """

    file: Path | None
    key: str

    def found(self) -> tuple[dict[str, Tensor], Progress] | None:
        """What an earlier run left, if it was the same."""
        if self.file is None or not self.file.is_file():
            return None
        with safe_open(self.file, "pt") as opened:
            if (opened.metadata() or {}).get("key") != self.key:
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
        step, seconds, *judged = tensors.pop(PROGRESS).tolist()
        return tensors, Progress(int(step), seconds, judged)

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Replace what is kept.

        Raises:
            OutputError: the disk is full.
        """
        if self.file is not None:
            numbers = torch.tensor([progress.step, progress.seconds, *progress.judged], dtype=torch.float64)
            content = _apart({**tensors, PROGRESS: numbers})
            write_bytes(self.file, save(content, {KEY: "learning", "key": self.key}))


def under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such a file whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each in memory of its own, as a file wants them: zero points stay those of the rounding."""
    found, seen = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found
