"""Ordinary text that natprec ships: several kinds and languages, in the public domain (`ordinary/README.md`).

Where a run is given no text, the model writes half of what is measured on, and the first halves of the excerpts are the
other half. The verdict is about the model's own text and about the second halves, which it did not write. An encoder
writes none: the excerpts are half of what it is measured on beside text that is given, and all of it without.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_FOLDER = Path(__file__).parent / "ordinary"

CALIBRATION = _FOLDER / "calibration.txt"
"""The first half of each excerpt, to measure on."""

ORDINARY = _FOLDER / "ordinary.txt"
"""The second half of each excerpt, to judge on."""

PROMPTS = _FOLDER / "prompts.txt"
"""For pipelines that make pictures of text, a line each."""

NAME = "natprec's ordinary text"
"""As measurements and verdicts call either."""

SHOWN, UNKNOWN = 4096, 0.1
"""Characters that show whether a tokenizer has tokens for ordinary text, and the share of them that it may not know."""


def readable(tokenizer: Any) -> bool:
    """Whether a tokenizer has tokens for ordinary text; that of a model of proteins or molecules has not."""
    if tokenizer is None:
        return False
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None:
        return True
    ids = tokenizer(CALIBRATION.read_text("utf-8")[:SHOWN], verbose=False)["input_ids"]
    return ids.count(unknown) <= UNKNOWN * len(ids)
