"""A pipeline of diffusers with one part quantized: the other parts are copied as they are.

The part's folder has its codes under the name that its library gives weights, and a `config.json` whose
`quantization_config` says how they are stored.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.checkpoints.compressed_tensors import checkpoint_tensors, quantization_config, write_weights
from natprec.checkpoints.packed_weights import packed
from natprec.checkpoints.sdnq import METHOD, sdnq_config, sdnq_tensors
from natprec.checkpoints.writer import CheckpointWriter
from natprec.measurement.component import carried_files
from natprec.measurement.subject import Subject
from natprec.models.config_file import FILE, KEY, found_object
from natprec.models.layers import known_layer
from natprec.models.pipelines import WEIGHTS, PipelineFolder
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan
from natprec.tasks.diffusion import PipelinePart

SHARD_BYTES = 5_000_000_000

RECORD = Path("natprec") / "component.json"
"""Where a checkpoint says which part of it is quantized."""

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.index.json", "*.msgpack")
"""What is not copied of the part that is written anew."""


class PipelineCheckpoint(CheckpointWriter):
    """A folder that diffusers reads, but for the codes that its part has."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None) -> None:
        super().__init__(folder, subject, plan, resume_folder)
        assert isinstance(subject.task, PipelinePart)
        self._part: str = subject.task.component
        self._source: PipelineFolder = subject.task.asked.pipeline

    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """See `CheckpointWriter.tensors`."""
        subject = self.subject
        return checkpoint_tensors(
            subject.model, subject.sites, codes, self.plan.profile, subject.storage_dtype,
            among=own, dtypes=subject.segmented.weights.dtypes, pack=self._pack,
        )  # fmt: skip

    def close(self) -> None:
        """See `CheckpointWriter.close`."""
        own = self.folder / self._part
        own.mkdir(parents=True, exist_ok=True)
        stem = WEIGHTS[self._source.parts[self._part][0]]
        write_weights(own, self.pieces(), SHARD_BYTES, stem=stem)
        scheme = self.scheme()
        described = self._source.described(self._part) | ({} if scheme is None else {KEY: scheme})
        _write_json(own / FILE, described)
        for file in carried_files(self._source):
            place = self.folder / file.relative_to(self._source.folder)
            weights = place.parent == own and any(place.match(pattern) for pattern in WEIGHT_FILES)
            if not weights and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, place)
        (self.folder / RECORD).parent.mkdir(exist_ok=True)
        _write_json(self.folder / RECORD, {"component": self._part})

    def scheme(self) -> dict[str, Any] | None:
        """The `quantization_config` of the part; None where nothing is quantized."""
        formats = {name: choice.format for name, choice in self.plan.sites.items() if choice.format is not None}
        if self._by_sdnq:
            return sdnq_config(self.subject.model, self.subject.sites, formats) if formats else None
        return quantization_config(self.subject.sites, formats, self.plan.profile) if formats else None

    @property
    def _by_sdnq(self) -> bool:
        return self.plan.profile.container == METHOD

    def _pack(self, uses: list[str], value: QuantizedTensor, int8: bool, dtype: torch.dtype) -> dict[str, Tensor]:
        """One weight's tensors."""
        if not self._by_sdnq:
            return packed(uses, value, int8, dtype)
        return sdnq_tensors(known_layer(self.subject.model.get_submodule(uses[0])), uses[0], value, dtype)


def quantized_part(folder: Path) -> str | None:
    """Which part of a pipeline natprec has quantized; None: the folder is no pipeline of natprec's."""
    found = found_object(folder / RECORD).get("component")
    return found if isinstance(found, str) else None


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
