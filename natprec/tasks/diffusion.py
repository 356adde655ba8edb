"""A part of a diffusion pipeline: it is given what the pipeline gives it, step after step.

A sample is one row of one call: a latent at its timestep, with what it is conditioned by. What the calls have in common
(`return_dict`, position ids, options) is no sample; the task keeps it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from natprec.tasks.samples import Samples
from natprec.tasks.task import Task

TIMESTEP = "timestep"
"""What denoisers call the argument that says how much noise is left."""

INSIDE = "."
"""Between the names of a dictionary that is an argument and of a tensor in it."""


@dataclass(frozen=True)
class Calls:
    """How a pipeline calls a part of it.

    Attributes:
        constants: arguments that are the same in each call.
        shown: one small sample, to see how the part is put together.
        entry: the method that is called: `forward`, of an autoencoder `decode`.
        channels: of the output that the pipeline reads, the others being a variance that it passes over; None: all.
    """

    constants: Mapping[str, Any]
    shown: Samples
    entry: str = "forward"
    channels: int | None = None


@dataclass(eq=False)
class PipelinePart(Task):
    """A part of a pipeline; without `calls` it only says what such parts have in common.

    Attributes:
        component: its name in the pipeline.
        pipeline: that of diffusers, which makes the samples.
        asked: what it is asked with: `natprec.data.prompts.Asked`.
        steps: of denoising; None: as many as the pipeline makes by itself.
        size: pixels of a side of an image; None: the pipeline's own.
    """

    component: str = ""
    pipeline: Any = None
    asked: Any = None
    steps: int | None = None
    size: int | None = None
    calls: Calls | None = field(default=None)

    name = "pipeline-part"
    noun = "a part of a diffusion pipeline"
    family = ""
    material = "steps"
    distortion = "component"
    reader = "steps"
    convolutions = True
    own = "the pipeline itself"

    def inputs(self, samples: Samples) -> dict[str, Any]:
        """The arguments of a call, dictionaries among them put together again."""
        assert self.calls is not None
        found: dict[str, Any] = {key: value for key, value in self.calls.constants.items() if INSIDE not in key}
        inner = {key: value for key, value in self.calls.constants.items() if INSIDE in key}
        for key, value in {**inner, **samples.tensors}.items():
            outer, _, leaf = key.partition(INSIDE)
            if leaf:
                found.setdefault(outer, {})[leaf] = value
            else:
                found[key] = value
        return found

    def forward(self, model: nn.Module, samples: Samples) -> Any:
        """What the part returns for a batch."""
        assert self.calls is not None
        if self.calls.entry == "forward":
            return model(**self.inputs(samples))
        return getattr(model, self.calls.entry)(**self.inputs(samples))

    def returned(self, model: nn.Module, samples: Samples) -> list[Tensor]:
        """The tensors of floats that the pipeline can read of it, (batch, …)."""
        assert self.calls is not None
        found = tree_leaves(_plain(self.forward(model, samples)))
        tensors = [each for each in found if isinstance(each, Tensor) and each.is_floating_point()]
        channels = self.calls.channels
        return tensors if channels is None else [each[:, :channels] for each in tensors]

    def probe(self, model: Any) -> Samples:
        """One row of a call that the pipeline made."""
        assert self.calls is not None
        return self.calls.shown

    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """The same row again and again: only the pipeline makes others."""
        assert self.calls is not None
        rows = [self.calls.shown] * count
        whole = rows[0]
        for each in rows[1:]:
            whole = whole.followed_by(each)
        return whole

    def longest(self, config: Any, processor: Any) -> int | None:
        """A latent has the places that it has."""
        return None

    def does_without(self, model: Any, missing: Iterable[str]) -> bool:
        """Nothing."""
        return False


def _plain(output: Any) -> Any:
    """Without the classes that libraries wrap outputs in, the order kept."""
    return dict(output) if hasattr(output, "keys") else output


PIPELINE_PART: Task = PipelinePart()
"""Of any pipeline: what distortions say they are for."""
