"""`natprec report`: a checkpoint's files as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Overwrite, own
from natprec.utils.options import OUTPUT

EXAMPLES = (
    "natprec report quantized",
    "natprec report quantized --compare compared/compare.json --eval eval.json --out report.html",
)

BESIDE = "Files to show"


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR|ID", help="Checkpoint written by natprec, or its Hub id.")],
    comparison: Annotated[Path | None, own("--compare", BESIDE, "compare.json of natprec compare.")] = None,
    energy: Annotated[Path | None, own("--energy", BESIDE, "energy.json of natprec energy.")] = None,
    scores: Annotated[Path | None, own("--eval", BESIDE, "eval.json of natprec eval.")] = None,
    inspection: Annotated[Path | None, own("--inspection", BESIDE, "Folder of natprec inspect --out.")] = None,
    out: Annotated[Path, own("--out", OUTPUT, "Write the page here.")] = Path("report.html"),
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write one HTML page that shows what a checkpoint costs and why, and solves any other tolerance by itself.

    The page needs no network and no server. Files of energy, eval and compare beside the checkpoint are found.
    """
    from natprec.commands.output import print_json
    from natprec.models.hub import checkpoint_path
    from natprec.reporting.page import page
    from natprec.reporting.sources import gather
    from natprec.utils.atomic_files import refuse_existing_file, write_bytes
    from natprec.utils.marks import refuse_inputs

    named = {"--compare": comparison, "--energy": energy, "--eval": scores, "--inspection": inspection}
    refuse_inputs(out, named)
    refuse_existing_file(out, overwrite, is_report, "report")
    sources = gather(
        checkpoint_path(folder), comparison=comparison, energy=energy, scores=scores, inspection=inspection
    )
    content = page(sources).encode()
    write_bytes(out, content)
    if as_json:
        print_json({"report": out.name, "bytes": len(content), "files": sources.files})
    else:
        print(f"written to {out}")


def is_report(path: Path) -> bool:
    """Whether a file is a page of natprec's."""
    from natprec.utils.marks import REPORT_TITLE

    try:
        with path.open("rb") as file:
            return REPORT_TITLE.encode() in file.read(2048)
    except OSError:
        return False
