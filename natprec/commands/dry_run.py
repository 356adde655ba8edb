"""`--dry-run`: what a run would take, as a table or JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from natprec.commands.output import print_json
from natprec.config import QuantizeConfig
from natprec.pipeline.estimate import estimate
from natprec.pipeline.request import open_subject
from natprec.pipeline.shared_estimate import SharedEstimate
from natprec.utils.human import human_bytes, human_seconds
from natprec.utils.progress import Stages


def dry_run(config: QuantizeConfig, stages: Stages, as_json: bool, judged: bool = True) -> None:
    """Open the model, time one batch, and say memory and time."""
    subject = open_subject(config, stages)
    formats = subject.candidates(config.profile, config.group_size, config.sites)
    with stages.stage("time one batch"):
        result = estimate(subject, config, len({fmt for several in formats.values() for fmt in several}), judged)
    if as_json:
        print_json(asdict(result))
        return
    console = Console()
    console.print(
        f"{result.weights / 1e6:.1f} M weights in {result.sites} sites, {result.blocks} blocks, "
        f"{result.formats} formats\n"
        f"memory: about {human_bytes(result.memory_bytes)}; the model: {human_bytes(result.model_bytes)} in float32"
        + ("" if subject.segmented.weights.whole else ", one block of it in memory at a time"),
        highlight=False,
    )
    if result.disk_bytes:
        console.print(f"disk, for the inputs of all blocks: {human_bytes(result.disk_bytes)}", highlight=False)
    if result.memory_bytes > result.available_bytes:
        stages.note(
            f"memory: {human_bytes(result.available_bytes)} are free, which is not enough; "
            "use --weights disk, fewer --tokens or a larger machine"
        )
    for stage, seconds in result.seconds.items():
        console.print(f"{stage}: about {human_seconds(seconds)}", highlight=False)
    console.print(f"all: about {human_seconds(sum(result.seconds.values()))}", highlight=False)
    if len(result.shared) > 1:
        console.print(_shared(result.shared))


def _shared(rows: Sequence[SharedEstimate]) -> Table:
    """A row for each number of processes."""
    table = Table("processes", "memory of each", "time", "sent by each", box=None)
    table.caption, table.caption_justify = "computed from one process; the time that sending takes is not in it", "left"
    for row in rows:
        sent = human_bytes(row.sent_bytes) if row.sent_bytes else "nothing"
        table.add_row(str(row.processes), human_bytes(row.memory_bytes), human_seconds(row.seconds), sent)
    return table
