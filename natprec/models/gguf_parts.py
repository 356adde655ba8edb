"""A GGUF file that was cut into parts, `NAME-00001-of-00003.gguf` and so on, read as one.

The first part has the metadata, each part a header of its own tensors.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from natprec.errors import ModelError
from natprec.models.gguf_files import GGUFHeader, check_gguf

PART = re.compile(r"(?P<name>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.ASCII)


def check_parts(file: Path) -> GGUFHeader:
    """What is in a GGUF file and, if it is the first of several parts, in the others.

    Raises:
        ModelError: it is another part, one is missing or of another model, or a file is damaged.
    """
    header = check_gguf(file)
    if header.parts < 2:
        return header
    named = PART.fullmatch(file.name)
    if named is None or int(named["count"]) != header.parts:
        raise ModelError(
            f"{str(file)!r} is one of {header.parts} parts of a GGUF file, and its name does not say which; call them "
            f"NAME-00001-of-{header.parts:05d}.gguf and so on, or join them (llama-gguf-split --merge)"
        )
    parts = [file.with_name(f"{named['name']}-{number:05d}-of-{named['count']}.gguf")
             for number in range(1, header.parts + 1)]  # fmt: skip
    if file != parts[0]:
        raise ModelError(f"{str(file)!r} is part {int(named['number'])} of a GGUF file; give the first: {parts[0]}")
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        raise ModelError(f"{str(file)!r} has {header.parts} parts, and {missing.name!r} is missing; put it beside them")
    tensors = list(header.tensors)
    for part in parts[1:]:
        other = check_gguf(part)
        if other.parts != header.parts:
            raise ModelError(f"{str(part)!r} is no part of {str(file)!r}; download both again")
        tensors += other.tensors
    return replace(header, tensors=tuple(tensors))
