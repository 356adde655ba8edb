"""A model that is larger than memory, rounded a stage at a time: its tensors in a file per stage, then in shards.

The files per stage outlive the process, so that a later run need not round those stages again.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from natprec.export.compressed_tensors import (
    cache_scales,
    checkpoint_tensors,
    quantization_config,
    write_settings,
    write_weights,
)
from natprec.files import write_bytes
from natprec.formats import engine_profile
from natprec.marks import KEY
from natprec.models.disk_names import DiskNames
from natprec.models.stored import read_stored, stored_names
from natprec.progress import Advance
from natprec.quantizers import QuantizedTensor
from natprec.rounding.apply import needed_gauges, rounded_stages
from natprec.solver import Plan
from natprec.staged.blocks import StagedModel
from natprec.staged.passage import Passage, state_key
from natprec.subject import Subject
from natprec.texts.windows import data_digest

STATE = "text.safetensors"
"""File of what the calibration text has become."""

SHARD_BYTES = 1_000_000_000
"""A shard is in memory while it is written."""


def round_to_folder(
    subject: Subject,
    plan: Plan,
    ids: Tensor | None,
    rounding: str,
    folder: Path,
    kept: Path,
    advance: Advance,
    seed: int = 0,
) -> None:
    """Round and write a checkpoint into an existing folder.

    Args:
        kept: folder that holds what has been rounded; with the same model, plan and text a later call goes on there.
    """
    passage = None
    if ids is not None:
        key = state_key(
            subject.digest, json.dumps(plan.to_json(), sort_keys=True), rounding, data_digest(ids),
            str(subject.staged.products), str(seed),
        )  # fmt: skip
        passage = Passage(subject.staged, ids, kept / STATE, key)
    pieces = Pieces(kept, subject, plan)
    gauges = needed_gauges(subject, plan)
    stages = rounded_stages(
        subject.staged, subject.sites, plan, passage, rounding, subject.storage_dtype, advance, gauges, seed
    )
    for stage, codes in stages:
        pieces.put(stage, codes)
        if passage is not None and passage.stage is not None and stage >= 0:
            passage.keep()
    pieces.join(folder)


class Pieces:
    """Files of a folder, one for each stage."""

    def __init__(self, folder: Path, subject: Subject, plan: Plan) -> None:
        self.folder, self._subject, self._plan = folder, subject, plan
        self._profile, self._names = engine_profile(plan.engine), DiskNames(subject.model)

    def file(self, stage: int) -> Path:
        """Of a stage by its number, which is -1 for the prefix."""
        return self.folder / f"stage-{stage + 1:05}.safetensors"

    def put(self, stage: int, codes: dict[str, QuantizedTensor]) -> None:
        """Write a stage, whose weights are in memory.

        Raises:
            OutputError: the disk is full.
        """
        subject = self._subject
        tensors = checkpoint_tensors(
            subject.model, subject.sites, codes, self._profile, subject.storage_dtype, self._plan.rounded_inputs,
            among=_own(subject.staged, stage), names=self._names, dtypes=subject.staged.weights.dtypes,
        )  # fmt: skip
        write_bytes(self.file(stage), save(tensors, {"format": "pt", KEY: "a stage"}))

    def join(self, out: Path) -> None:
        """Write the checkpoint into an existing folder, one shard after another."""
        subject, plan = self._subject, self._plan
        files = [self.file(stage) for stage in subject.staged.stages]
        tensors: dict[str, Tensor] = {name: read_stored(file, name) for file in files for name in stored_names(file)}
        tensors |= cache_scales(plan.cache, subject.storage_dtype)
        write_weights(out, tensors, SHARD_BYTES, subject.leftovers.read())
        formats = {name: choice.format for name, choice in plan.sites.items() if choice.format is not None}
        scheme = quantization_config(
            subject.sites, formats, self._profile, plan.rounded_inputs, plan.cache, self._names,
            [*subject.staged.routing.routers, *subject.leftovers.modules],
        )  # fmt: skip
        write_settings(out, subject.model, subject.tokenizer, scheme, subject.storage_dtype)


def _own(staged: StagedModel, stage: int) -> set[int]:
    """Identities of the parameters that no earlier stage has; buffers are the first one's."""
    earlier = {id(each) for before in staged.stages if before < stage for each in staged.parameters(before)}
    tensors: list[torch.Tensor] = [*staged.parameters(stage)]
    if stage == staged.stages[0]:
        tensors += list(staged.model.buffers())
    return {id(each) for each in tensors} - earlier
