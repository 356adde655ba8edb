"""Formats by name, as measurements and plans write them."""

from __future__ import annotations

import re

from natprec.errors import InputError
from natprec.formats.gguf import GGUF_TYPES
from natprec.formats.number_format import CHANNEL, NumberFormat

_NAME = re.compile(r"int(?P<bits>[1-8])-(?:g(?P<group>\d+)|channel)(?P<asym>-asym)?")


def parse_format(name: str) -> NumberFormat:
    """The format with this name.

    Raises:
        InputError: the name is not of the form `int4-g64`, `int4-channel` or `int4-g64-asym`, and no GGUF type.
    """
    if name in GGUF_TYPES:
        return GGUF_TYPES[name]
    match = _NAME.fullmatch(name)
    if match is None:
        raise InputError(f"unknown format {name!r}; write for example int4-g64, int8-channel, int4-g64-asym or Q4_K")
    return NumberFormat(int(match["bits"]), int(match["group"] or CHANNEL), match["asym"] is None)
