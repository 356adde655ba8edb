"""The checkpoint as a Hugging Face folder, put together from its segments: shards, configuration, tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from natprec.checkpoints.bitsandbytes import four_bit_config, four_bit_tensors
from natprec.checkpoints.compressed_tensors import (
    Pack,
    checkpoint_tensors,
    quantization_config,
    write_settings,
    write_weights,
)
from natprec.checkpoints.fixed_scales import cache_scales, input_scales
from natprec.checkpoints.gguf import GGUFCheckpoint
from natprec.checkpoints.packed_weights import packed
from natprec.checkpoints.pipelines import PipelineCheckpoint
from natprec.checkpoints.writer import CheckpointWriter
from natprec.engines.architectures import CLASS_TARGET, EMBEDDINGS
from natprec.formats import Format, engine_profile
from natprec.measurement.subject import Subject
from natprec.models.disk_names import DiskNames
from natprec.quantizers import QuantizedTensor
from natprec.solver import Plan
from natprec.tasks.diffusion import PipelinePart

SHARD_BYTES = 5_000_000_000

MAPPED_SHARD_BYTES = 1_000_000_000
"""Of what comes from files: a shard is in memory while it is written."""


class PackedCheckpoint(CheckpointWriter):
    """A normal Hugging Face folder."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None) -> None:
        super().__init__(folder, subject, plan, resume_folder)
        self._profile, self._names = plan.profile, DiskNames(subject.model)

    pack: Pack = staticmethod(packed)
    """What makes a weight's tensors of its codes."""

    def tensors(self, own: Collection[int], codes: dict[str, QuantizedTensor]) -> dict[str, Tensor]:
        """See `CheckpointWriter.tensors`."""
        subject = self.subject
        return checkpoint_tensors(
            subject.model, subject.sites, codes, self._profile, subject.storage_dtype, self.plan.rounded_inputs,
            among=own, names=self._names, dtypes=subject.segmented.weights.dtypes, pack=self.pack,
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
        scheme = self.scheme(formats)
        more = {"tie_word_embeddings": False} if subject.untied else {}
        write_settings(self.folder, subject.model, subject.tokenizer, scheme, subject.storage_dtype, more)

    def scheme(self, formats: Mapping[str, Format]) -> dict[str, Any] | None:
        """The `quantization_config` of config.json; None where nothing is quantized.

        Args:
            formats: site → format of its weight.
        """
        subject, plan = self.subject, self.plan
        return quantization_config(
            subject.sites, formats, self._profile, plan.rounded_inputs, plan.cache, self._names,
            [*subject.segmented.routing.routers, *subject.leftovers.modules], self._classes(),
        )  # fmt: skip

    def _classes(self) -> dict[str, str]:
        """Sites whose modules vLLM gives no name: what it finds instead of that."""
        if self._profile.gpu is None or EMBEDDINGS.get(self.subject.architecture) != "class":
            return {}
        return {site.name: CLASS_TARGET for site in self.subject.sites if site.role == "embedding"}


class BitsAndBytesCheckpoint(PackedCheckpoint):
    """A normal Hugging Face folder whose weights bitsandbytes reads: see `natprec.checkpoints.bitsandbytes`."""

    pack: Pack = staticmethod(four_bit_tensors)

    def scheme(self, formats: Mapping[str, Format]) -> dict[str, Any] | None:
        """See `PackedCheckpoint.scheme`."""
        return four_bit_config(self.subject.model, self.subject.sites, formats, self.subject.storage_dtype)


WRITERS: dict[str, type[CheckpointWriter]] = {
    "compressed-tensors": PackedCheckpoint,
    "gguf": GGUFCheckpoint,
    "bitsandbytes": BitsAndBytesCheckpoint,
}
"""Container → what writes it."""


def checkpoint_writer(
    folder: Path, subject: Subject, plan: Plan, resume_folder: Path | None = None
) -> CheckpointWriter:
    """Returns the writer for the container that the plan's engine reads; arguments as for `CheckpointWriter`."""
    if isinstance(subject.task, PipelinePart):
        return PipelineCheckpoint(folder, subject, plan, resume_folder)
    return WRITERS[engine_profile(plan.engine).container](folder, subject, plan, resume_folder)
