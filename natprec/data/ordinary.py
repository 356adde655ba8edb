"""Ordinary text that natprec ships: several kinds and languages, in the public domain (`ordinary/README.md`).

Where a run is given no text, the model writes some; the verdict is then also about this, which it did not write.
"""

from __future__ import annotations

from pathlib import Path

ORDINARY = Path(__file__).parent / "ordinary" / "ordinary.txt"

NAME = "natprec's ordinary text"
"""As verdicts call it."""
