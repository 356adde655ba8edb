"""The inputs that an engine really rounds on a GPU, where a checkpoint says otherwise; a verdict is of those."""

from __future__ import annotations

from pathlib import Path

from natprec.checkpoints.engine_layers import describe
from natprec.engines.vllm import run
from natprec.engines.vllm_rules import NEWEST, VLLM
from natprec.errors import InputError
from natprec.formats import Format, parse_activation
from natprec.formats.gpus import ANY, capabilities


def inputs_that_run(folder: Path, engine: str, gpu: str | None) -> dict[str, Format | None]:
    """Module of a checkpoint → what its inputs are rounded to, None: 16 bits; only where that is not what it says.

    Args:
        gpu: a generation; 'any' and None: as the checkpoint says.
    Raises:
        InputError: a layer cannot run there; or a GPU is named and the engine's rules were not read.
    """
    if gpu is None or gpu == ANY:
        return {}
    if engine != "vllm":
        raise InputError(f"gpu {gpu!r}: what engine {engine!r} runs on it is not known; natprec has the rules of vllm")
    found: dict[str, Format | None] = {}
    for layer in describe(folder).layers:
        ran = run(layer, capabilities(gpu)[0], VLLM[NEWEST])
        if ran.runs is None:
            raise InputError(
                f"{layer.name!r} of {str(folder)!r} is {layer.says}, which vLLM {NEWEST} cannot run on {gpu}: "
                f"{ran.note}; natprec check lists all such layers"
            )
        if ran.runs != layer.says:
            inputs = ran.runs.partition("/")[2]
            found |= dict.fromkeys(layer.members, parse_activation(inputs) if inputs else None)
    return found
