"""Whose an output is. natprec replaces and removes only what it can tell to be its own, and never what it reads.

A folder carries a list of the files that natprec wrote into it, with their sizes; one file more, or one of another
size, is somebody else's. Measurements, and the progress beside an output, say in their header what they are.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from natprec.errors import OutputError
from natprec.utils.json_text import from_json

MARK = "natprec/written.json"
"""Where in a folder the list is."""

REWRITTEN = "verification.json"
"""The file of a checkpoint that `natprec verify` adds later, or writes anew."""

CARDS = ("README.md", "ladder.svg")
"""The files that `natprec card` adds later."""

CARD_MADE_BY = "<!-- Rendered by natprec card from the JSON files beside it; changes here are lost. -->"
"""The line in them that says so."""

REPORT_TITLE = "<title>natprec report"
"""How the page of `natprec report` begins its title."""

ADDED = {**dict.fromkeys(CARDS, CARD_MADE_BY), "eval.json": '"lm_eval_version"', "report.html": REPORT_TITLE}
"""Files that commands add to a checkpoint later → the text in each by which it is natprec's."""

KEY = "natprec"
"""In the metadata of each safetensors file that is natprec's own: what it is of."""


_BEGINNING = re.compile(rb'\{"__metadata__":\{("\w+":"[\w -]*",)*"natprec":')
"""Of a safetensors file's header, whose metadata come first, in any order."""


def mark_folder(folder: Path) -> None:
    """List the files of a finished folder in it."""
    (folder / MARK).parent.mkdir(exist_ok=True)
    content = {"producer": "natprec", "files": _files(folder)}
    (folder / MARK).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def refuse_foreign(folder: Path) -> None:
    """Say why a folder is not deleted for the sake of a new output; an empty one may be.

    Raises:
        OutputError: it is a file, carries no mark, or holds what natprec did not write.
    """
    if not folder.is_dir():
        raise OutputError(f"{str(folder)!r} is no folder that natprec wrote, so --overwrite leaves it; choose another")
    found = _files(folder)
    if not found and not any(folder.iterdir()):
        return
    known = listed(folder)
    if known is None:
        raise OutputError(
            f"folder {str(folder)!r} was not written by natprec (it has no {MARK}; early versions wrote none "
            "either), so --overwrite does not delete it; remove it yourself, or choose another"
        )
    changed = [name for name, size in found.items() if name != REWRITTEN and known.get(name) != size]
    others = [name for name in changed if not is_added(folder / name)]
    if others:
        raise OutputError(
            f"folder {str(folder)!r} holds {others[0]!r}, which natprec did not write or was changed since, so "
            "--overwrite does not delete it; move that file away, or choose another folder"
        )


def is_added(file: Path) -> bool:
    """Whether a file is one that natprec added to a checkpoint: a card, answers, a report."""
    if file.name not in ADDED or file.is_symlink() or not file.is_file():
        return False
    return ADDED[file.name] in file.read_text(encoding="utf-8", errors="replace")


def is_ours(file: Path) -> bool:
    """Whether a file begins as a measurement does, or progress that natprec keeps, be it cut off; links are not."""
    if file.is_symlink() or not file.is_file():
        return False
    with file.open("rb") as opened:
        return _BEGINNING.match(opened.read(400)[8:]) is not None


def discard(file: Path) -> None:
    """Remove a file that natprec keeps progress in; none is there: nothing.

    Raises:
        OutputError: it is something else, which stays.
    """
    if not os.path.lexists(file):
        return
    if not is_ours(file):
        raise OutputError(f"{str(file)!r} is where natprec keeps its progress, and is not natprec's; move it away")
    file.unlink()


def refuse_inputs(out: Path, inputs: Mapping[str, Path | None]) -> None:
    """What is read is not written over.

    Args:
        inputs: option → the file or folder that it names; None: nothing on this machine.
    Raises:
        OutputError: the output is one of them, or lies in one, or one lies in it.
    """
    place = Path(os.path.realpath(out))
    for option, path in inputs.items():
        source = place if path is None else Path(os.path.realpath(path))
        if path is None or not (place == source or source in place.parents or place in source.parents):
            continue
        how = "is" if place == source else "lies in" if source in place.parents else "holds"
        raise OutputError(f"output {str(out)!r} {how} the input {str(path)!r} ({option}); choose a place outside of it")


def _files(folder: Path) -> dict[str, int]:
    """Relative name → bytes of all that is in a folder but the mark; links are not followed, empty folders not seen."""
    found = {}
    for place, folders, names in os.walk(folder):
        linked = [name for name in folders if Path(place, name).is_symlink()]
        for name in [*names, *linked]:
            file = Path(place, name)
            found[file.relative_to(folder).as_posix()] = file.stat().st_size if file.exists() else 0
    found.pop(MARK, None)
    return dict(sorted(found.items()))


def listed(folder: Path) -> dict[str, int] | None:
    """What a folder's mark lists, name → bytes; None: there is no mark."""
    try:
        content = from_json((folder / MARK).read_text(encoding="utf-8"))
        ours = content["producer"] == "natprec" and isinstance(content["files"], dict)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content["files"] if ours else None
