"""A pipeline of diffusers whose quantized part runs on its codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from natprec.checkpoints.code_reader import Checkpoint
from natprec.checkpoints.pipeline_reader import load_part, opened_pipeline
from natprec.checkpoints.pipelines import quantized_part
from natprec.checkpoints.sdnq import METHOD
from natprec.errors import InputError
from natprec.models.config_file import KEY
from natprec.models.devices import usable_device
from natprec.models.pipeline_loading import empty_network, load_pipeline
from natprec.models.pipelines import DIFFUSERS, INDEX
from natprec.runtime.build import Builder, Chosen
from natprec.runtime.kernels.kernel import Kernel
from natprec.runtime.load import Runnable
from natprec.runtime.load import load as load_model
from natprec.tasks.diffusion import PIPELINE_PART
from natprec.utils.installed import require


@dataclass(frozen=True)
class RunnablePipeline:
    """A loaded pipeline; call it like the pipeline of diffusers that it is.

    Attributes:
        pipeline: of diffusers.
        component: the part whose Linears run on codes, and whose convolutions run on weights that were unpacked; with
            codes for diffusers all of them do.
        kernels: module of that part → what runs it.
        device: where it computes.
    """

    pipeline: Any
    component: str
    kernels: dict[str, Chosen]
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """The quantized part."""
        found: nn.Module = getattr(self.pipeline, self.component)
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the pipeline makes."""
        return self.pipeline(*args, **kwargs)


def load(
    folder: str | Path, *, device: str = "cpu", kernels: tuple[Kernel, ...] | None = None,
    trust_remote_code: bool = False,
) -> Runnable | RunnablePipeline:  # fmt: skip
    """Open a checkpoint for running on its codes: a model, see `natprec.runtime.load.load`, or a pipeline of diffusers.

    Args:
        folder: as `natprec quantize` or another quantizer wrote it; or its id on the Hub, with `@revision` or without.
        device: as torch spells it: 'cpu', 'cuda', 'cuda:1'.
        kernels: what may run a layer, the preferred first; else the device's own.
        trust_remote_code: run Python that comes with the checkpoint; never asked interactively.
    Raises:
        InputError: no such checkpoint, or no such device.
        ModelError: a file or tensor is missing or damaged, or a layer needs a kernel that there is none of.
    """
    place = Path(folder)
    if (place / INDEX).is_file():
        return load_pipeline_on_codes(place, usable_device(device), kernels, trust_remote_code)
    return load_model(folder, device=device, kernels=kernels, trust_remote_code=trust_remote_code)


def load_pipeline_on_codes(
    folder: Path, device: torch.device, kernels: tuple[Kernel, ...] | None, trust_remote_code: bool
) -> RunnablePipeline:
    """Open a pipeline that natprec has written.

    Raises:
        InputError: no part of it is quantized by natprec, or diffusers is not installed.
        ModelError: a file or tensor is missing or damaged.
    """
    require("diffusers", f"{str(folder)!r} is a pipeline of diffusers", DIFFUSERS)
    opened, name = opened_pipeline(folder), quantized_part(folder)
    if name is None:
        raise InputError(
            f"{str(folder)!r} is a pipeline of which natprec has quantized no part; load it with diffusers"
        )
    if opened.described(name).get(KEY, {}).get("quant_method") == METHOD:
        network = load_part(folder, name).to(device)
        return RunnablePipeline(load_pipeline(opened, trust_remote_code, device, {name: network}), name, {}, device)
    network = empty_network(opened, name)
    for module in network.modules():
        for key, each in list(module.named_parameters(recurse=False)):
            module._parameters[key] = nn.Parameter(each.to("meta"), requires_grad=False)
    builder = Builder(Checkpoint(folder / name, opened.weight_files(name), ours=True), network, device.type, kernels)
    builder.replace_all()
    builder.fill_the_rest(PIPELINE_PART)
    network.eval().requires_grad_(False).to(device)
    pipeline = load_pipeline(opened, trust_remote_code, device, {name: network})
    return RunnablePipeline(pipeline, name, builder.chosen, device)
