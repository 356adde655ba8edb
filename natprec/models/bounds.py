"""How much a checkpoint may claim before memory and time are spent on it.

The bounds are far above every model there is: DeepSeek-V3 has 61 layers of 256 experts, and shards of a few thousand
tensors. A number beyond them is damage, or somebody's wish to fill this machine.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from natprec.errors import ModelError

MOST = {"layer": 4096, "block": 4096, "expert": 65536}
"""What a configuration counts → how many there may be."""

MOST_TENSORS = 100_000
"""In one file, or pairs of metadata."""

_COUNT = re.compile(r"(?:(?:num|n)_(?:\w+_)?|\w+_)(layer|block|expert)s?(?:_count)?|(layer|block|expert)_count")


def refuse_counts(described: Any, where: str) -> None:
    """Refuse a configuration, JSON values nested in each other, by its counts of layers, blocks and experts.

    Raises:
        ModelError: names the entry.
    """
    if isinstance(described, list):
        for value in described:
            refuse_counts(value, where)
    if not isinstance(described, dict):
        return
    for key, value in described.items():
        refuse_counts(value, where)
        found = _COUNT.fullmatch(str(key).rpartition(".")[2])
        most = MOST[found[1] or found[2]] if found else None
        if most is not None and isinstance(value, int) and value > most:
            raise ModelError(
                f"model {where!r} claims {key} = {value}, and natprec takes at most {most}; its configuration is "
                "damaged or forged: get it from where the model comes from"
            )


def refuse_many_tensors(count: int, file: Path) -> None:
    """Raises ModelError where a file lists more tensors, or pairs of metadata, than any model's file."""
    if count > MOST_TENSORS:
        raise ModelError(
            f"{str(file)!r} lists {count} tensors or entries, and natprec takes at most {MOST_TENSORS} in one file; "
            "it is damaged or forged: download it again, or save the model in smaller shards"
        )
