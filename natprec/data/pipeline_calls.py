"""A pipeline runs, and what it gives one of its parts is noted, call by call.

Noise and timesteps are the pipeline's own: its scheduler's, drawn for each image from a generator of its own, so that
an image is the same in whatever company it is made.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.models.pipeline_loading import hushed, refuse_uncallable
from natprec.tasks.diffusion import INSIDE, TIMESTEP, PipelinePart
from natprec.utils.system_faults import out_of_memory

MOST_STEPS = 50
"""Of denoising, where the user names no number and the pipeline would make more."""

NULL_CLASS = 1000
"""What `DiTPipeline` calls no class, whatever classes its transformer has."""

FIXED = ("txt_ids", "img_ids")
"""Tensors that are no samples, whatever their first dimension is."""

DECODED = "decode"


class _DoneError(Exception):
    """Raised in place of decoding, where only the steps are wanted."""


@dataclass(frozen=True)
class Call:
    """One call of a part: `rows`, name → (batch, …), and what else it was given."""

    rows: dict[str, Tensor]
    constants: dict[str, Any]

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))


def default_steps(pipeline: Any) -> int:
    """Steps of denoising that a pipeline makes by itself, at most `MOST_STEPS`."""
    known = inspect.signature(type(pipeline).__call__).parameters.get("num_inference_steps")
    steps = getattr(known, "default", None)
    return min(steps, MOST_STEPS) if isinstance(steps, int) else MOST_STEPS


def entry_of(module: nn.Module, component: str) -> str:
    """The method by which pipelines call a part: of an autoencoder `decode`."""
    return DECODED if hasattr(module, DECODED) and component.startswith(("vae", "vqvae", "movq")) else "forward"


@torch.no_grad()
def run_pipeline(
    part: PipelinePart, items: Sequence[Any], seeds: Sequence[int], steps: int, decode: bool = True
) -> Any:
    """Make an image for each seed.

    Args:
        items: what the images are asked with; empty: nothing.
        decode: whether latents become images; without, nothing is returned.
    Raises:
        ModelError: the pipeline fails; says why.
    """
    pipeline = part.pipeline
    known = inspect.signature(type(pipeline).__call__).parameters
    given: dict[str, Any] = {"generator": [torch.Generator().manual_seed(seed % 2**64) for seed in seeds]}
    if part.asked.argument:
        given[part.asked.argument] = list(items)
    elif "batch_size" in known:
        given["batch_size"] = len(seeds)
    if "num_inference_steps" in known:
        given["num_inference_steps"] = steps
    if part.size is not None and {"height", "width"} <= known.keys():
        given["height"] = given["width"] = part.size
    elif part.size is not None:
        raise InputError(
            f"image-size {part.size}: images of {type(pipeline).__name__} have one size; leave out --image-size"
        )
    if "output_type" in known:
        given["output_type"] = "pt"
    if part.asked.argument == "class_labels" and "guidance_scale" in known and not _has_null_class(pipeline):
        given["guidance_scale"] = 1.0
    refuse_uncallable(pipeline, given)
    with contextlib.ExitStack() as around:
        around.enter_context(hushed())
        if not decode and hasattr(getattr(pipeline, "vae", None), DECODED):
            around.enter_context(_replaced(pipeline.vae, DECODED, _stop))
        try:
            return pipeline(**given)
        except _DoneError:
            return None
        except NatprecError:
            raise
        except Exception as error:  # whatever a pipeline's own code raises
            cause = "out of memory" if out_of_memory(error) else first_line(error)
            raise ModelError(
                f"pipeline {type(pipeline).__name__} cannot make an image in {steps} steps ({cause}); "
                "try it in diffusers first, or give other --steps"
            ) from error


def _has_null_class(pipeline: Any) -> bool:
    """Whether guidance can be had: the class that stands for none is a number of `DiTPipeline`, not of its model."""
    config = getattr(getattr(pipeline, "transformer", None), "config", {})
    return bool(config.get("num_embeds_ada_norm") == NULL_CLASS)


def _stop(*args: Any, **kwargs: Any) -> None:
    raise _DoneError


@contextlib.contextmanager
def _replaced(owner: Any, name: str, instead: Any) -> Iterator[None]:
    """A method of one object is another one within the block."""
    setattr(owner, name, instead)
    try:
        yield
    finally:
        delattr(owner, name)


@contextlib.contextmanager
def noted(part: PipelinePart, entry: str) -> Iterator[list[Call]]:
    """Within the block each call of the part is noted."""
    module = getattr(part.pipeline, part.component)
    own, calls = getattr(module, entry), list[Call]()
    names = inspect.signature(getattr(type(module), entry))

    def instead(*args: Any, **kwargs: Any) -> Any:
        calls.append(_call(names.bind(module, *args, **kwargs).arguments, part.component))
        return own(*args, **kwargs)

    with _replaced(module, entry, instead):
        yield calls


def _call(arguments: Mapping[str, Any], component: str) -> Call:
    """The arguments of a call, divided into samples and what is none."""
    flat: dict[str, Any] = {}
    for name, value in list(arguments.items())[1:]:
        if isinstance(value, Mapping) and any(isinstance(each, Tensor) for each in value.values()):
            flat |= {f"{name}{INSIDE}{leaf}": each for leaf, each in value.items()}
        elif name == "kwargs" and isinstance(value, Mapping):
            flat |= value
        else:
            flat[name] = value
    batch = next((len(each) for each in flat.values() if isinstance(each, Tensor) and each.dim() > 1), 0)
    rows: dict[str, Tensor] = {}
    for name, value in flat.items():
        if name == TIMESTEP and not isinstance(value, Tensor) and value is not None:
            value = torch.tensor(value)
        if isinstance(value, Tensor) and (value.dim() == 0 or (name == TIMESTEP and len(value) == 1)):
            value = value.reshape(1).expand(batch)
        if isinstance(value, Tensor) and len(value) == batch and name not in FIXED:
            rows[name] = value.detach().clone()
    if not rows:
        raise ModelError(f"the pipeline calls its {component} without a tensor, so there is nothing to measure it on")
    return Call(rows, {name: value for name, value in flat.items() if name not in rows})


def refuse_unlike(calls: Sequence[Call], component: str) -> None:
    """Refuse calls that cannot be samples of one kind, or that hold no numbers.

    Raises:
        ModelError: names the argument.
    """
    first = calls[0]
    for call in calls:
        for name in call.rows.keys() | first.rows.keys():
            one, two = call.rows.get(name), first.rows.get(name)
            if one is None or two is None or one.shape[1:] != two.shape[1:]:
                raise ModelError(
                    f"the pipeline gives its {component} {name!r} in several shapes, which make no samples; "
                    f"measure it from Python: natprec.measure(pipeline.{component}, samples=...)"
                )
        for name, value in call.constants.items():
            if not _same(value, first.constants.get(name)):
                raise ModelError(
                    f"the pipeline gives its {component} another {name!r} at each step, and it is no tensor with a row "
                    f"for each image; measure it from Python: natprec.measure(pipeline.{component}, samples=...)"
                )
        for name, tensor in call.rows.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                when = f" at timestep {float(call.rows[TIMESTEP].flatten()[0]):g}" if TIMESTEP in call.rows else ""
                raise ModelError(
                    f"the pipeline gives its {component} NaN or Inf as {name!r}{when}; a part of it is damaged, or its "
                    "scheduler does not suit it: try it in diffusers first"
                )


def _same(one: Any, two: Any) -> bool:
    first, second = tree_leaves(one), tree_leaves(two)
    return len(first) == len(second) and all(
        torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a is b or a == b
        for a, b in zip(first, second, strict=True)
    )
