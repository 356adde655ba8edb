"""The tables of `natprec inspect` fit 80 columns, sums first, and say how much they leave out."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run_command import natprec

FEW = ("--tokens", 128, "--sequence-length", 32, "--group-size", 32)


def test_tables_fit_a_terminal_and_begin_with_the_sums(
    tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ("inspect", "--model", tiny_folder, "--data", text_file, *FEW)
    short = natprec(*options, "--top", 3)
    assert short.code == 0, short.err
    lines = short.out.splitlines()
    assert all(len(line) <= 80 for line in lines if "error" not in line)
    assert "bits erased" in " ".join(lines[:2])
    assert sum("--top 0" in line for line in lines) == 2
    assert any(line.startswith("the 3 largest sites of") for line in lines)
    whole = natprec(*options, "--top", 0)
    assert "--top 0" not in whole.out
    assert len(whole.out.splitlines()) > len(lines) + 20
