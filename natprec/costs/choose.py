"""Which costs answer `--minimize`: the user's table, natprec's own of that engine and GPU, or a roofline."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path

from natprec.costs.model import CostModel
from natprec.costs.peaks import of_gpu
from natprec.costs.roofline import Roofline
from natprec.costs.table import CostTable
from natprec.errors import InputError
from natprec.formats.gpus import ANY, generation

BYTES = "bytes"
MINIMIZE = (BYTES, "decode", "prefill", "joules")
"""What a plan may be the least of: bytes on disk, the time of a new token, that of a prompt, joules of a new token."""

PREFILL_TOKENS = 512
"""Tokens of a prompt."""

TOKENS = {"decode": 1, "prefill": PREFILL_TOKENS, "joules": 1}
"""Of the products that are added up."""

FOLDER = Path(__file__).parent
SHIPPED = {("natprec", "h200"): "natprec-h200.toml"}
"""Engine and GPU → the table that natprec ships."""


def costs_for(minimize: str, engine: str, gpu: str | None, file: Path | None) -> CostModel | None:
    """What knows the costs; None for bytes, which follow from the formats.

    Args:
        gpu: a generation, a GPU's name or `any`, as the user gave it.
        file: the user's table.
    Raises:
        InputError: the table is of another engine, GPU or unit; or there is no table, and no roofline stands in.
    """
    if minimize == BYTES:
        if file is not None:
            raise InputError(f"costs {str(file)!r}: bytes need no table; add --minimize decode, prefill or joules")
        return None
    if file is not None:
        table = CostTable.load(file)
        _refuse_other(table, minimize, engine, gpu)
        return table
    if minimize == "joules":
        raise InputError(
            "minimize 'joules' needs a measured table, since no estimate ranks two energies; make one with natprec "
            "energy MODEL --costs --out joules.toml and give --costs joules.toml"
        )
    if gpu is None or generation(gpu) == ANY:
        where = "a CPU has no published peaks" if engine in _ON_CPUS and gpu is None else "no one GPU is named"
        raise InputError(
            f"minimize {minimize!r}: there is no table of costs of engine {engine!r} here, and {where} for a roofline; "
            "measure one with natprec costs and give it with --costs, or name a GPU with --gpu, for example h200"
        )
    shipped = of_gpu({name: file for (known, name), file in SHIPPED.items() if known == engine}, gpu)
    if shipped is not None:
        return _shipped(shipped)
    if engine in _NO_GPU_KERNELS:
        raise InputError(
            f"minimize {minimize!r}: engine {engine!r} has no kernels whose costs natprec knows, and its formats are "
            "unpacked before they are multiplied; measure a table of it and give it with --costs"
        )
    return Roofline.of(gpu)


_ON_CPUS = ("natprec", "llama.cpp", "transformers", "bitsandbytes")
_NO_GPU_KERNELS = ("transformers",)
"""Engines that make weights dense before they multiply, so that their formats all cost the same."""


@functools.cache
def _shipped(name: str) -> CostTable:
    return CostTable.load(FOLDER / name, name)


def _refuse_other(table: CostTable, minimize: str, engine: str, gpu: str | None) -> None:
    if table.engine != engine:
        raise InputError(
            f"table of costs {table.name!r} is of {table.of}, and the plan is for engine {engine!r}; measure one of "
            f"that with natprec costs --engine {engine}, or solve with --engine {table.engine}"
        )
    wanted = "joules" if minimize == "joules" else "microseconds"
    if table.unit != wanted:
        raise InputError(
            f"table of costs {table.name!r} has {table.unit}, and --minimize {minimize} adds up {wanted}; "
            + ("make one with natprec energy MODEL --costs" if wanted == "joules" else "make one with natprec costs")
        )
    if minimize == "joules" and table.source != "measured":
        raise InputError(f"table of costs {table.name!r} is computed ({table.source}); joules must be measured")
    if gpu is None or generation(gpu) == ANY:
        return
    if table.gpu is None:
        raise InputError(f"table of costs {table.name!r} is of {table.of}, and --gpu is {gpu!r}; leave --gpu out")
    if not _same_gpu(table.gpu, gpu):
        raise InputError(
            f"table of costs {table.name!r} is of {table.of}, and --gpu is {gpu!r}; measure one on that GPU with "
            "natprec costs, or name the table's GPU"
        )


def _same_gpu(name: str, wanted: str) -> bool:
    """Whether a GPU's marketing name is what the user calls it; a generation stands for all of its GPUs."""
    plain = "".join(each for each in wanted.lower() if each.isalnum())
    if plain.startswith("sm"):
        with_name = [word for word in _words(name) if _generation(word) is not None]
        return any(_generation(word) == generation(wanted) for word in with_name)
    joined = "".join(_words(name))
    return plain.removeprefix("nvidia").removeprefix("geforce") in joined


def _words(name: str) -> list[str]:
    words = name.lower().replace("-", " ").replace("_", " ").split()
    return [*words, *("".join(pair) for pair in itertools.pairwise(words))]


def _generation(word: str) -> str | None:
    try:
        return generation(word)
    except InputError:
        return None
