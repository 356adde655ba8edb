"""How far learning against the end has come, and the files from which a killed run goes on."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY
from natprec.utils.workers import Workers

PROGRESS = "progress"
"""Tensor of the first file: step, seconds, and what was judged."""

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
    """Where learning goes on from: a file of each process, with what it moves. The first one's also holds the best so
    far, and what the caller adds.

    All files of a step are written before those of an earlier one are removed, so that a run which is killed while
    they are written goes on from the earlier step. Any number of processes goes on from what others have left.

    Attributes:
        file: to whose name step and process are added; None: nothing is kept.
        key: of the model, plan, text and options; files with another one are not used.
    """

    file: Path | None
    key: str
    workers: Workers = field(default_factory=Workers)

    def found(self) -> tuple[Mapping[str, Tensor], Progress] | None:
        """What an earlier run left, if it was the same; tensors are read when they are asked for."""
        names = "\n".join(str(file) for file in self._newest()) if self.workers.first else ""
        names = self.workers.from_first(names.encode()).decode()
        if not names:
            return None
        files = [safe_open(name, "pt") for name in names.split("\n")]
        tensors = _Opened({name: file for file in files for name in file.keys()})  # noqa: SIM118  # no mapping
        step, seconds, *judged = tensors[PROGRESS].tolist()
        return tensors, Progress(int(step), seconds, judged)

    def write(self, tensors: Mapping[str, Tensor], progress: Progress) -> None:
        """Replace what is kept; all processes call this.

        Args:
            tensors: of this process; no other one has any of these names.
        Raises:
            OutputError: the disk is full.
        """
        if self.file is None:
            return
        before, workers = self._files(), self.workers
        own = self.file.with_name(
            f"{self.file.stem}-{progress.step:08d}-{workers.rank}of{workers.size}{self.file.suffix}"
        )
        if workers.first:
            numbers = torch.tensor([progress.step, progress.seconds, *progress.judged], dtype=torch.float64)
            tensors = {**tensors, PROGRESS: numbers}
        write_bytes(own, save(_apart(tensors), {KEY: "learning", "key": self.key}))
        workers.wait()
        if workers.first:
            for file in before:
                if not file.name.startswith(f"{self.file.stem}-{progress.step:08d}-"):
                    file.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        """All that earlier steps left."""
        if self.file is None:
            return []
        return sorted(self.file.parent.glob(f"{glob.escape(self.file.stem)}-*of*{self.file.suffix}"))

    def _newest(self) -> list[Path]:
        """The files of the last step of which no process's is missing, in the order of ranks."""
        whole: dict[tuple[int, int], list[Path]] = {}
        for file in self._files():
            numbers = re.search(r"-(\d+)-(\d+)of(\d+)$", file.stem)
            if numbers and self._same(file):
                step, _, size = map(int, numbers.groups())
                whole.setdefault((step, size), []).append(file)
        complete = [key for key, files in whole.items() if len(files) == key[1]]
        return sorted(whole[max(complete)]) if complete else []

    def _same(self, file: Path) -> bool:
        with safe_open(file, "pt") as opened:
            return (opened.metadata() or {}).get("key") == self.key


class _Opened(Mapping[str, Tensor]):
    """Tensors of several files by name."""

    def __init__(self, files: Mapping[str, Any]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._files[name].get_tensor(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def under(start: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of such files whose names begin so, by the rest of their names."""
    return {name.removeprefix(start): tensors[name] for name in tensors if name.startswith(start)}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each in memory of its own, as a file wants them: zero points stay those of the rounding."""
    found, seen = dict[str, Tensor](), set[int]()
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        found[name] = value.clone() if place in seen else value
        seen.add(place)
    return found
