"""Finds what an engine really runs of a checkpoint on a GPU, before either is at hand.

A checkpoint says formats; an engine's own rules choose kernels by GPU, shape and version, and some of those leave
inputs at 16 bits, or round what the file says is not. So a promise holds for a checkpoint and a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natprec.checkpoints.engine_layers import describe
from natprec.engines.layers import Layer, Run
from natprec.engines.transformers import run as run_in_transformers
from natprec.engines.vllm import run as run_in_vllm
from natprec.engines.vllm_rules import NEWEST, VLLM
from natprec.errors import InputError
from natprec.formats.gpus import ANY, EVERYWHERE, capabilities, generation
from natprec.models.hub import checkpoint_path


@dataclass(frozen=True)
class Checked:
    """One layer: its name in the engine, what the checkpoint says, and what comes of it.

    Attributes:
        elsewhere: version of the engine → what it runs, where that differs.
    """

    layer: Layer
    run: Run
    elsewhere: dict[str, Run]

    def to_json(self) -> dict[str, str | None]:
        """Plain values."""
        return {
            "name": self.layer.name,
            "says": self.layer.says,
            "runs": self.run.runs,
            "kernel": self.run.kernel,
            "note": self.note,
        }

    @property
    def note(self) -> str:
        """The notes on this version, then on others."""
        others = (
            f"{version}: {other.kernel or 'cannot run'}"
            + (f", {other.runs}" if other.runs not in (None, self.run.runs) else "")
            for version, other in self.elsewhere.items()
        )
        return "; ".join([*filter(None, [self.run.note]), *others])


@dataclass(frozen=True)
class Check:
    """All layers; attributes as asked for, the GPU as its generation."""

    engine: str
    engine_version: str
    gpu: str
    architecture: str
    layers: tuple[Checked, ...]

    @property
    def refused(self) -> list[Checked]:
        """Layers that cannot run."""
        return [each for each in self.layers if each.run.runs is None]


def check(folder: str | Path, engine: str, gpu: str | None, version: str | None = None) -> Check:
    """Tell each layer's kernel and arithmetic.

    Args:
        folder: of the checkpoint, or its id on the Hub.
        version: of the engine; default: the newest whose rules were read.
    Raises:
        InputError: no rules of that engine or version; no GPU, or an unknown one; no checkpoint.
        ModelError: a weight file cannot be read.
    """
    if engine == "transformers":
        if version is not None:
            raise InputError(f"engine-version {version!r}: the rules of transformers are those of one; leave it out")
        found = describe(checkpoint_path(folder))
        ran = tuple(Checked(layer, run_in_transformers(layer), {}) for layer in found.layers)
        return Check(engine, "5", "" if gpu is None else generation(gpu), found.architecture, ran)
    if engine != "vllm":
        raise InputError(f"engine {engine!r}: its rules were not read; natprec has those of transformers and vllm")
    if gpu is None or generation(gpu) == ANY:
        raise InputError(
            f"gpu {gpu!r}: vLLM chooses by the generation of one GPU; give its name, for example h100, or one of "
            f"{', '.join(f'sm{each}' for each in EVERYWHERE)}"
        )
    version = version or NEWEST
    if version not in VLLM:
        raise InputError(f"engine-version {version!r}: the rules that were read are of vLLM {', '.join(VLLM)}")
    found, (capability,) = describe(checkpoint_path(folder)), capabilities(generation(gpu))
    layers = []
    for layer in found.layers:
        runs = {each: run_in_vllm(layer, capability, rules) for each, rules in VLLM.items()}
        own = runs.pop(version)
        different = {each: run for each, run in runs.items() if (run.kernel, run.runs) != (own.kernel, own.runs)}
        layers.append(Checked(layer, own, different))
    return Check(engine, version, generation(gpu), found.architecture, tuple(layers))
