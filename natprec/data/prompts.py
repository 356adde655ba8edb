"""What a pipeline is asked with while it is measured: prompts, classes, or nothing. torch is not needed.

Prompts are the lines of a text file. A pipeline that makes images of classes is asked with class numbers, a line each,
or by default with all of them. Of a file of prompts some lines measure and the others judge, as far as there are two;
of classes others judge where there are more than images.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from natprec.data.ordinary import PROMPTS
from natprec.errors import InputError, first_line
from natprec.models.pipelines import PipelineFolder

MOST_PROMPTS = 4096
"""Lines that are read of a file."""

HELD_OUT = 4
"""One in so many lines judges."""

ORDINARY_PROMPTS = "natprec's prompts"
ALL_CLASSES = "all classes"
NOISE = "noise alone"
"""What measurements and verdicts call what nobody gave."""


@dataclass(frozen=True)
class Asked:
    """What a pipeline is asked with.

    Attributes:
        argument: of the pipeline's call: `prompt`, `class_labels`, or empty where it is given noise alone.
        items: prompts or classes.
        name: of what nobody gave.
        pipeline: that is asked.
    """

    argument: str
    items: tuple[str | int, ...]
    name: str
    pipeline: PipelineFolder | None = None

    def chosen(self, count: int, split: str, shared: bool) -> list[str | int]:
        """What so many images are asked with, spread over the items; empty where they are asked nothing.

        Args:
            split: 'calibration' or 'held-out'; `shared`: whether one source has the items of both.
        >>> Asked("prompt", tuple("abcdef"), "x").chosen(3, "held-out", True)
        ['c', 'c', 'c']
        >>> Asked("class_labels", tuple(range(8)), "x").chosen(4, "held-out", True)
        [0, 2, 4, 6]
        """
        items, judges = list(self.items), split == "held-out"
        if shared and self.argument == "prompt" and len(items) > 1:
            judging = {n for n in range(len(items)) if n % HELD_OUT == HELD_OUT // 2} or {len(items) - 1}
            items = [item for number, item in enumerate(items) if (number in judging) == judges]
        if not items:
            return []
        offset = 0 if judges else 1
        return [items[(2 * number + offset) * len(items) // (2 * count)] for number in range(count)]


def asked_of(pipeline: PipelineFolder, source: str | None) -> Asked:
    """What a pipeline is asked with.

    Args:
        source: a text file; None: what natprec has for such a pipeline.
    Raises:
        InputError: the file cannot be read or is empty, a class is out of range, or the pipeline takes neither.
    """
    lines = None if source is None else _lines(source)
    if pipeline.by_text:
        own = tuple(PROMPTS.read_text("utf-8").splitlines())
        return Asked("prompt", own if lines is None else tuple(lines.values()), ORDINARY_PROMPTS, pipeline)
    classes = pipeline.classes
    if classes is None:
        if source is not None:
            raise InputError(
                f"prompts {source!r}: pipeline {str(pipeline.folder)!r} ({pipeline.kind}) makes images of noise alone; "
                "leave out --prompts"
            )
        return Asked("", (), NOISE, pipeline)
    if lines is None:
        return Asked("class_labels", tuple(range(classes)), ALL_CLASSES, pipeline)
    named = tuple(_class(line, number, classes, source) for number, line in lines.items())
    return Asked("class_labels", named, ALL_CLASSES, pipeline)


def _lines(source: str) -> dict[int, str]:
    """Number of a line → its text, without empty ones; of a dict the values are taken in order."""
    file = Path(source).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"prompts {source!r} {what}; give a text file with a prompt on each line")
    try:
        text = file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts {source!r}: no UTF-8 text ({first_line(error)}); give one prompt a line") from error
    if "\0" in text:
        raise InputError(f"prompts {source!r}: no text but binary data; give a text file with a prompt on each line")
    found = {number: line.strip() for number, line in enumerate(text.splitlines(), start=1) if line.strip()}
    if not found:
        raise InputError(f"prompts {source!r}: the file has no line with a prompt; write one a line")
    return dict(list(found.items())[:MOST_PROMPTS])


def _class(line: str, number: int, classes: int, source: str | None) -> int:
    if not line.isdecimal() or int(line) >= classes:
        raise InputError(
            f"prompts {source!r}, line {number}: {line[:40]!r} is no class; the pipeline has classes 0 to {classes - 1}"
        )
    return int(line)
