"""`natprec check`: what an engine runs of a checkpoint on a GPU."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natprec.commands.options import Json, configured, own
from natprec.config import QuantizeConfig
from natprec.utils.options import METHOD

if TYPE_CHECKING:
    from natprec.pipeline.check import Check

EXAMPLES = (
    "natprec check smollm2-natprec --engine vllm --gpu h100",
    "natprec check ./downloaded --engine vllm --gpu rtx5090 --engine-version 0.25.1 --json",
)


@configured
def check(
    config: QuantizeConfig,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR|ID", help="Checkpoint in compressed-tensors format, or its Hub id.")
    ],
    engine_version: Annotated[
        str | None,
        own("--engine-version", METHOD, "Version of the engine; default: the newest whose rules natprec knows."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell each layer's kernel and the arithmetic that it really does, by the engine's own rules; no GPU is needed.

    Exit code 3: a layer cannot run.
    """
    from natprec.commands.output import print_json
    from natprec.pipeline.check import check as checked

    found = checked(folder, config.engine, config.gpu, engine_version)
    if as_json:
        print_json(
            {
                "engine": found.engine,
                "engine_version": found.engine_version,
                "gpu": found.gpu,
                "architecture": found.architecture,
                "layers": [each.to_json() for each in found.layers],
            }
        )
    else:
        _show(found)
    if found.refused:
        raise typer.Exit(3)


def _show(found: Check) -> None:
    """Layers that have all in common on one line; those that cannot run, or differ between versions, by name."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.print(f"{found.engine} {found.engine_version} {found.gpu}".rstrip(), highlight=False)
    table = Table("layers", "kernel", "the checkpoint says", "the engine runs", box=None, pad_edge=False)
    rows = Counter((each.run.kernel, each.layer.says, each.run.runs) for each in found.layers)
    for (kernel, says, runs), count in rows.most_common():
        table.add_row(str(count), kernel or "none", says, runs or "cannot run")
    console.print(table)
    for note, names in _by_note(found).items():
        console.print(f"{note}: {', '.join(names)}", highlight=False, markup=False)


def _by_note(found: Check) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for each in found.layers:
        if each.note:
            names.setdefault(each.note, []).append(each.layer.name)
    return names
