"""A pipeline of diffusers in memory, in float32, each part's weights read from safetensors."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from natprec.errors import ModelError
from natprec.models.devices import quiet
from natprec.models.headers import FLOATS, read_headers
from natprec.models.model_files import explained
from natprec.models.pipelines import PipelineFolder


@contextlib.contextmanager
def hushed(stderr: bool = False) -> Iterator[None]:
    """Hold back what diffusers says of its own accord, beside what `quiet` does; restored afterwards."""
    from diffusers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with quiet(stderr):
            yield
    finally:
        logging.set_verbosity(verbosity)


def load_pipeline(
    folder: PipelineFolder, trust_remote_code: bool, device: torch.device, given: Mapping[str, nn.Module] | None = None
) -> Any:
    """The pipeline on a device, its networks in float32 and without gradients; it shows no progress.

    Args:
        given: parts that are there already.
    Raises:
        ModelError: diffusers cannot load it; says why.
    """
    from diffusers import DiffusionPipeline

    with explained(str(folder.folder)), hushed(stderr=True):
        pipeline = DiffusionPipeline.from_pretrained(
            str(folder.folder), torch_dtype=torch.float32, use_safetensors=True, local_files_only=True,
            trust_remote_code=trust_remote_code, **(given or {}),
        )  # fmt: skip
        pipeline.to(device)
    for name in folder.networks:
        getattr(pipeline, name).eval().requires_grad_(False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stored_types(folder: PipelineFolder, name: str) -> dict[str, torch.dtype]:
    """Tensor of a network → its dtype on disk."""
    headers = read_headers(folder.weight_files(name))
    return {key: FLOATS[each.dtype] for key, each in headers.items() if each.dtype in FLOATS}


def empty_network(folder: PipelineFolder, name: str) -> nn.Module:
    """A part's network by its config.json, without its weights: those in it are random.

    Raises:
        ModelError: its library cannot make one.
    """
    library, kind = folder.parts[name]
    place = folder.folder / name
    with explained(str(place)), hushed(stderr=True):
        made: Any = getattr(importlib.import_module(library), kind)
        if library == "diffusers":
            described = dict(made.load_config(str(place)))
            described.pop("quantization_config", None)
            network = made.from_config(described, trust_remote_code=False)
        else:
            config = made.config_class.from_pretrained(str(place), trust_remote_code=False)
            with contextlib.suppress(AttributeError):
                del config.quantization_config
            network = made(config)
    found: nn.Module = network.float().eval().requires_grad_(False)
    return found


def refuse_uncallable(pipeline: Any, given: Mapping[str, Any]) -> None:
    """Refuse a pipeline that wants more than natprec gives it, such as a picture to change.

    Raises:
        ModelError: names the argument.
    """
    for name, each in inspect.signature(type(pipeline).__call__).parameters.items():
        needed = each.default is inspect.Parameter.empty and each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        if needed and name not in ("self", *given):
            raise ModelError(
                f"pipeline {type(pipeline).__name__} is called with {name!r}, which natprec does not make; measure its "
                "part from Python: natprec.measure(pipeline.PART, samples=...)"
            )
