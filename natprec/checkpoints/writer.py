"""A checkpoint that takes one segment of a model after another, while that segment's weights are held.

What has been taken is kept until all is there: in memory, or in a file per segment, which outlives the process, so
that a later run need not round these segments again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from natprec.measurement.subject import Subject
from natprec.models.segments import StagedModel
from natprec.models.stored import read_stored, stored_names
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan
from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY


class CheckpointWriter(ABC):
    """Of one container: it says what it stores of a segment, and puts the whole together."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan, kept: Path | None = None) -> None:
        """Begin.

        Args:
            folder: exists; the checkpoint is written into it by `close`.
            kept: folder of the files that hold what was put; None: it stays in memory.
        """
        self.folder, self.subject, self.plan, self.kept = folder, subject, plan, kept
        self._here: dict[str, Tensor] = {}
        self._own = _owned(subject.staged)

    def put(self, stage: int, codes: dict[str, QuantizedTensor]) -> None:
        """Take a segment, whose weights are held.

        Raises:
            OutputError: the disk is full.
        """
        tensors = self.tensors(self._own[stage], codes)
        if self.kept is None:
            self._here |= tensors
        else:
            write_bytes(_file(self.kept, stage), save(tensors, {"format": "pt", KEY: "a stage"}))

    def pieces(self) -> dict[str, Tensor]:
        """All that was put, by the names of `tensors`; what is in files is mapped."""
        if self.kept is None:
            return self._here
        files = [_file(self.kept, stage) for stage in self.subject.staged.stages]
        return {name: read_stored(file, name) for file in files for name in stored_names(file)}

    @abstractmethod
    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """What is stored of a segment, by name.

        Args:
            own: identities of the parameters and buffers that no earlier segment has.
            codes: site → codes on the grid of its format.
        """

    @abstractmethod
    def close(self) -> None:
        """Write the checkpoint, after the last segment."""


def _file(folder: Path, stage: int) -> Path:
    """Of a segment by its number, which is -1 for the prefix."""
    return folder / f"stage-{stage + 1:05}.safetensors"


def _owned(staged: StagedModel) -> dict[int, set[int]]:
    """Stage → identities of the parameters that no earlier stage has; buffers are the first one's."""
    seen: set[int] = set()
    own = {}
    for stage in staged.stages:
        held = {id(each) for each in staged.parameters(stage)}
        own[stage] = held - seen
        seen |= held
    own[staged.stages[0]] |= {id(each) for each in staged.model.buffers()}
    return own
