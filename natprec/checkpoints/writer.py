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
from natprec.models.headers import read_stored
from natprec.models.segments import SegmentedModel
from natprec.models.stored import stored_names
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan
from natprec.utils.atomic_files import write_bytes
from natprec.utils.marks import KEY


class CheckpointWriter(ABC):
    """Writes one container: subclasses say what they store of a segment, and put the whole together."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None) -> None:
        """Begin.

        Args:
            folder: exists; the checkpoint is written into it by `close`.
            resume_folder: of the files that hold what was put; None: it stays in memory.
        """
        self.folder, self.subject, self.plan, self.resume_folder = folder, subject, plan, resume_folder
        self._here: dict[str, Tensor] = {}
        self._own = _owned(subject.segmented)

    def put(self, segment: int, codes: dict[str, QuantizedTensor]) -> None:
        """Take a segment, whose weights are held.

        Raises:
            OutputError: the disk is full.
        """
        tensors = self.tensors(self._own[segment], codes)
        if self.resume_folder is None:
            self._here |= tensors
        else:
            write_bytes(_file(self.resume_folder, segment), save(tensors, {"format": "pt", KEY: "a segment"}))

    def pieces(self) -> dict[str, Tensor]:
        """All that was put, by the names of `tensors`; what is in files is mapped."""
        if self.resume_folder is None:
            return self._here
        files = [_file(self.resume_folder, segment) for segment in self.subject.segmented.segments]
        return {name: read_stored(file, name) for file in files for name in stored_names(file)}

    @abstractmethod
    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """The tensors that are stored for a segment, by name.

        Args:
            own: identities of the parameters and buffers that no earlier segment has.
            codes: site → codes on the grid of its format.
        """

    @abstractmethod
    def close(self) -> None:
        """Write the checkpoint, after the last segment."""


def _file(folder: Path, segment: int) -> Path:
    """Of a segment by its number, which is -1 for the prefix."""
    return folder / f"segment-{segment + 1:05}.safetensors"


def _owned(segmented: SegmentedModel) -> dict[int, set[int]]:
    """Segment → identities of the parameters that no earlier segment has; buffers are the first one's."""
    seen: set[int] = set()
    own = {}
    for segment in segmented.segments:
        held = {id(each) for each in segmented.parameters(segment)}
        own[segment] = held - seen
        seen |= held
    own[segmented.segments[0]] |= {id(each) for each in segmented.model.buffers()}
    return own
