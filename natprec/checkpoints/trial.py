"""Tries beforehand whether transformers loads such a checkpoint, with an empty one: names and shapes alone.

transformers makes some models' modules ready in a way that needs a dense weight (Falcon's), and of some it finds no
module for what the checkpoint names (Nemotron-H's) and draws random numbers instead, without an error. A model on the
meta device tells in a fraction of a second; the same one, dense, tells whether it is the packing.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from natprec.checkpoints.compressed_tensors import is_int8, quantization_config
from natprec.checkpoints.packed_weights import stored_as
from natprec.errors import ModelError, first_line
from natprec.formats import Format, engine_profile
from natprec.measurement.subject import Subject
from natprec.models.devices import quiet
from natprec.models.disk_names import DiskNames

TRIED = ("sglang", "transformers", "vllm")
"""Engines whose checkpoints transformers may load: the others' have zero points, or are GGUF files."""


def refusal(subject: Subject, engine: str) -> str | None:
    """Why transformers does not load this model once it is packed for an engine; None: it does, or nobody knows."""
    if engine not in TRIED:
        return None
    profile, unreached = engine_profile(engine), subject.unreached
    candidates, formats = subject.candidates(profile, None), dict[str, Format]()
    for site in subject.sites:
        fit = [fmt for fmt in candidates[site.name] if profile.runs(site.role, fmt)]
        if fit and site.name not in unreached:
            formats[site.name] = fit[0]
    why = _tried(subject, engine, formats)
    return None if why is None or _tried(subject, engine, {}) is not None else why


def refuse_unloadable(subject: Subject, engine: str) -> None:
    """Refuse, before anything is measured, a checkpoint that its own engine would not load.

    Raises:
        ModelError: transformers is the engine, or what else loads such a model, and does not.
    """
    of_text = subject.task.material == "text"
    why = refusal(subject, engine) if engine == "transformers" or not of_text else None
    if why is not None:
        other = "vllm, or natprec" if of_text else "natprec,"
        raise ModelError(
            f"transformers does not load {type(subject.model).__name__} with packed weights ({why}); "
            f"use --engine {other} for natprec's own loader"
        )


def unlike(report: Mapping[str, Collection[Any]], dense: nn.Module) -> str | None:
    """The entries of a loading report by transformers that show that this is not the model that was saved.

    What the original's own files had beside the model is unexpected too and does no harm; a code or scale does. Nor
    does it when a buffer is missing that no file has, as each model makes it (the scale of Gemma's embeddings).

    Args:
        dense: a model of that class whose weights are not packed; it may be empty.
    """
    made = {name for name, _ in dense.named_buffers()} - dense.state_dict().keys()
    lost = [name for name in map(str, report["unexpected_keys"]) if name.rpartition(".")[2].startswith("weight_")]
    found = {
        "missing, so random": sorted(set(map(str, report["missing_keys"])) - made),
        "without a place": sorted(lost),
        "of another shape": sorted(map(str, report["mismatched_keys"])),
        "not readable": sorted(map(str, report.get("error_msgs", ()))),
    }
    parts = [f"{len(names)} {what}: {names[0]} …" for what, names in found.items() if names]
    return "; ".join(parts) or None


def _tried(subject: Subject, engine: str, formats: Mapping[str, Format]) -> str | None:
    """Why the loading fails; dense if nothing has a format."""
    from loguru import logger

    config, names = copy.deepcopy(subject.model.config), DiskNames(subject.model)
    if formats:
        routers = subject.segmented.routing.routers
        config.quantization_config = quantization_config(  # type: ignore[union-attr]
            subject.sites, formats, engine_profile(engine), names=names, routers=routers
        )
    loader: Any = type(subject.model)
    logger.disable("compressed_tensors")  # of a tensor without values it says so, for each
    try:
        with quiet(stderr=True):
            _, report = loader.from_pretrained(
                None, config=config, state_dict=_empty(subject, engine, formats, names), dtype=torch.float32,
                device_map={"": "meta"}, output_loading_info=True,
                trust_remote_code=False,  # there is no folder that code could come from
            )  # fmt: skip
    except Exception as error:  # whatever a model's own code raises
        return first_line(error)
    finally:
        logger.enable("compressed_tensors")
    return unlike(report, subject.model)


def _empty(subject: Subject, engine: str, formats: Mapping[str, Format], names: DiskNames) -> dict[str, Tensor]:
    """The tensors of the checkpoint, on the meta device."""

    def empty(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    replaced = {use + ".weight" for site in subject.sites if site.name in formats for use in site.uses}
    stored: dict[int, str] = {}
    for name, tensor in subject.model.state_dict(keep_vars=True).items():
        if name not in replaced:
            stored.setdefault(id(tensor), name)
    state = subject.model.state_dict(keep_vars=True)
    tensors = {names.tensor(name): empty(*state[name].shape, dtype=state[name].dtype) for name in stored.values()}
    for site in subject.sites:
        if site.name not in formats:
            continue
        fmt, owner = formats[site.name], names.module(site.uses[0])
        int8 = is_int8(site, fmt, engine_profile(engine), None)
        stored_tensors = stored_as(fmt, site.shape, int8, subject.storage_dtype)
        tensors |= {f"{owner}.{leaf}": tensor for leaf, tensor in stored_tensors.items()}
        if int8:
            scale = stored_tensors["weight_scale"]
            tensors |= {
                f"{names.module(use)}.weight_scale": empty(*scale.shape, dtype=scale.dtype) for use in site.uses
            }
    return tensors
