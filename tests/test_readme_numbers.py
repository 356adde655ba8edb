"""Every number in README's tables comes from a file of figures, and so do the marked tables of docs/results.md."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
SCREEN = 30
"""Lines of a table that are read without scrolling."""

WITHOUT_FIGURES = ("## What is supported",)
"""Sections of README whose tables hold no measured figure."""


@pytest.fixture(scope="module")
def tables() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_say_what_the_figures_say(tables: Any) -> None:
    for page in tables.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert tables.filled(text) == text, f"{page} differs: python scripts/tables.py"


def test_another_figure_would_show(tables: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = tables.figures

    def other(name: str) -> Any:
        return json.loads(json.dumps(honest(name)).replace("0.133", "0.134"))

    monkeypatch.setattr(tables, "figures", other)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(text) != text


def test_readme_has_no_tables_of_figures_beside(tables: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for section in WITHOUT_FIGURES:
        begin = text.index(section)
        text = text[:begin] + text[text.index("\n## ", begin) :]
    outside = tables.REGION.sub("", text)
    assert not re.findall(r"^\|.*\d", outside, re.MULTILINE)


def test_tables_fit_a_screen(tables: Any) -> None:
    for _, name, _ in tables.REGION.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        lines = tables.RENDERED[name]().splitlines()
        assert len(lines) <= SCREEN, name
        assert max(map(len, lines)) <= 100, name


def test_each_file_says_what_wrote_it() -> None:
    files = sorted((ROOT / "docs" / "figures").glob("*.json"))
    assert files
    for file in files:
        found = json.loads(file.read_text(encoding="utf-8"))
        assert found["command"].startswith(("natprec ", "scripts/")), file.name
