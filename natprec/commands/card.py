"""`natprec card`: the model card of a checkpoint, every number from the files beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import Json, Overwrite, own
from natprec.errors import InputError
from natprec.utils.options import OUTPUT

EXAMPLES = ("natprec card smollm2-natprec", "natprec card smollm2-natprec --out card.md")


def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint of natprec's, or its ladder.")],
    out: Annotated[Path | None, own("--out", OUTPUT, "File to write; default: DIR/README.md.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Render README.md: verdict, figures, what is quantized, how to run and to reproduce it, limits, licence.

    A card that natprec rendered is replaced; any other file only with --overwrite.
    """
    from natprec.commands.output import print_json
    from natprec.publishing.ladder import CARD, pages
    from natprec.utils.atomic_files import write_bytes
    from natprec.utils.marks import CARD_MADE_BY
    from natprec.utils.records import public_name

    contents = pages(folder)
    file = out or folder / "README.md"
    if file.is_dir():
        raise InputError(f"output {str(file)!r} is a folder; name a file, such as {str(file / 'README.md')!r}")
    written = {file if name == CARD else file.with_name(name): content for name, content in contents.items()}
    for each in written:
        if each.exists() and not overwrite and CARD_MADE_BY not in each.read_text(encoding="utf-8", errors="replace"):
            raise InputError(
                f"output {str(each)!r} exists and is no card of natprec's; choose another or add --overwrite"
            )
    for each, content in written.items():
        write_bytes(each, content.encode())
    if as_json:
        print_json({"out": public_name(file), "bytes": len(contents[CARD].encode())})
    else:
        print(f"written to {file}")
