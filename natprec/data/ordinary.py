"""Ordinary text that natprec ships: several kinds and languages, in the public domain (`ordinary/README.md`).

Where a run is given no text, the model writes half of what is measured on, and the first halves of the excerpts are the
other half. The verdict is about the model's own text and about the second halves, which it did not write.
"""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent / "ordinary"

CALIBRATION = _FOLDER / "calibration.txt"
"""The first half of each excerpt, to measure on."""

ORDINARY = _FOLDER / "ordinary.txt"
"""The second half of each excerpt, to judge on."""

PROMPTS = _FOLDER / "prompts.txt"
"""For pipelines that make pictures of text, a line each."""

NAME = "natprec's ordinary text"
"""As measurements and verdicts call either."""
