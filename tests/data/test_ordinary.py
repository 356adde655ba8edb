"""The text that natprec ships is there, of a few hundred kB, and of several kinds and scripts."""

from __future__ import annotations

from pathlib import Path

import pytest

from natprec.data.ordinary import CALIBRATION, ORDINARY


@pytest.mark.parametrize("file", [CALIBRATION, ORDINARY])
def test_it_is_ordinary_text_of_several_kinds_with_a_note_on_its_licence(file: Path) -> None:
    content = file.read_bytes()
    assert 150_000 < len(content) < 300_000
    text = content.decode("utf-8")
    for sample in ("Alice", "ROSALIND", "Gregor", "Candide", "Quijote", "direitos", "diritti", "def ", "insan"):
        assert sample in text, sample
    assert "Gutenberg" not in text, "a trademark, and no part of the works"
    note = ORDINARY.with_name("README.md").read_text("utf-8")
    assert "public domain" in note
    assert "Kafka" in note


def test_what_judges_was_not_measured_on() -> None:
    measured, judging = (set(file.read_text("utf-8").splitlines()) for file in (CALIBRATION, ORDINARY))
    assert max(map(len, measured & judging), default=0) < 50, "but for short lines, such as imports"
