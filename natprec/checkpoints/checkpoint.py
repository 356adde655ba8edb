"""The checkpoint in compressed-tensors format, put together from its segments: shards, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from natprec.checkpoints.compressed_tensors import (
    checkpoint_tensors,
    quantization_config,
    write_settings,
    write_weights,
)
from natprec.checkpoints.fixed_scales import cache_scales, input_scales
from natprec.checkpoints.gguf import GGUFCheckpoint
from natprec.checkpoints.writer import CheckpointWriter
from natprec.engines.architectures import CLASS_TARGET, EMBEDDINGS
from natprec.formats import engine_profile
from natprec.measurement.subject import Subject
from natprec.models.disk_names import DiskNames
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan

SHARD_BYTES = 5_000_000_000

MAPPED_SHARD_BYTES = 1_000_000_000
"""Of what comes from files: a shard is in memory while it is written."""


class PackedCheckpoint(CheckpointWriter):
    """A normal Hugging Face folder."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None) -> None:
        super().__init__(folder, subject, plan, resume_folder)
        self._profile, self._names = plan.profile, DiskNames(subject.model)

    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """See `CheckpointWriter.tensors`."""
        subject = self.subject
        return checkpoint_tensors(
            subject.model, subject.sites, codes, self._profile, subject.storage_dtype, self.plan.rounded_inputs,
            among=own, names=self._names, dtypes=subject.segmented.weights.dtypes,
        )  # fmt: skip

    def close(self) -> None:
        """See `CheckpointWriter.close`."""
        subject, plan = self.subject, self.plan
        shard = SHARD_BYTES if self.resume_folder is None else MAPPED_SHARD_BYTES
        largest = {fused_group: choice.largest for fused_group, choice in plan.inputs.items()}
        tensors = self.pieces() | cache_scales(plan.cache, subject.storage_dtype)
        tensors |= input_scales(subject.sites, plan.rounded_inputs, largest, subject.storage_dtype, self._names)
        write_weights(self.folder, tensors, shard, subject.leftovers.read())
        formats = {name: choice.format for name, choice in plan.sites.items() if choice.format is not None}
        scheme = quantization_config(
            subject.sites, formats, self._profile, plan.rounded_inputs, plan.cache, self._names,
            [*subject.segmented.routing.routers, *subject.leftovers.modules], self._classes(),
        )  # fmt: skip
        more = {"tie_word_embeddings": False} if subject.untied else {}
        write_settings(self.folder, subject.model, subject.tokenizer, scheme, subject.storage_dtype, more)

    def _classes(self) -> dict[str, str]:
        """Sites whose modules vLLM gives no name: what it finds instead of that."""
        if self._profile.gpu is None or EMBEDDINGS.get(self.subject.architecture) != "class":
            return {}
        return {site.name: CLASS_TARGET for site in self.subject.sites if site.role == "embedding"}


def checkpoint_writer(
    folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None
) -> CheckpointWriter:
    """Returns the writer for the container that the plan's engine reads; arguments as for `CheckpointWriter`."""
    gguf = engine_profile(plan.engine).container == "gguf"
    return (GGUFCheckpoint if gguf else PackedCheckpoint)(folder, subject, plan, resume_folder)
