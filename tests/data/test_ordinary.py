"""The text that natprec ships is there, of a few hundred kB, and of several kinds and scripts."""

from __future__ import annotations

from natprec.data.ordinary import ORDINARY


def test_it_is_ordinary_text_of_several_kinds_with_a_note_on_its_licence() -> None:
    content = ORDINARY.read_bytes()
    assert 200_000 < len(content) < 600_000
    text = content.decode("utf-8")
    for sample in ("Alice", "ROSALIND", "Gregor", "Candide", "Quijote", "direitos", "diritti", "def ", "İnsan"):
        assert sample in text, sample
    assert "Gutenberg" not in text, "a trademark, and no part of the works"
    note = ORDINARY.with_name("README.md").read_text("utf-8")
    assert "public domain" in note
    assert "Kafka" in note
