"""Standard streams that are full, closed, or that nobody reads: the work is done, and the exit code is one of ours."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from natprec.cli import main
from natprec.utils.streams import lasting, nobody_reads

FULL = Path("/dev/full")
full_disk = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        yield stream


def ran(monkeypatch: pytest.MonkeyPatch, *arguments: str, **streams: Any) -> int:
    """The exit code of a command with these standard streams."""
    monkeypatch.setattr(sys, "argv", ["natprec", *arguments])
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


@full_disk
def test_a_result_that_has_no_place_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    err = io.StringIO()
    with FULL.open("w") as out:
        assert ran(monkeypatch, "--version", stdout=out, stderr=err) == 2
        out.flush()  # as Python does when it ends: nothing is left to fail with
    assert err.getvalue() == (
        "natprec: standard output cannot be written (No space left on device); files are written all the same\n"
    )


def test_a_reader_that_went_away_is_no_fault(monkeypatch: pytest.MonkeyPatch, unread: TextIO) -> None:
    err = io.StringIO()
    assert ran(monkeypatch, "--version", stdout=unread, stderr=err) == 0
    assert not err.getvalue()


REFUSED = ("solve", "nowhere", "--eps", "0.1", "--out", "out")


@full_disk
def test_messages_without_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    with FULL.open("w", buffering=1) as err:
        assert ran(monkeypatch, *REFUSED, stderr=err) == 2


def test_messages_that_nobody_reads(monkeypatch: pytest.MonkeyPatch, unread: TextIO) -> None:
    assert ran(monkeypatch, *REFUSED, stderr=unread) == 2


@pytest.mark.parametrize("code", [("stdout", REFUSED, 2), ("stderr", REFUSED, 2), ("stdin", ("--version",), 0)])
def test_streams_that_are_closed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: tuple[str, tuple[str, ...], int]
) -> None:
    name, arguments, expected = code
    assert ran(monkeypatch, *arguments, **{name: None}) == expected
    if name == "stderr":  # else messages would stand among the results
        assert not capsys.readouterr().out


def test_numbers_that_are_free_are_taken(tmp_path: Path) -> None:
    """With standard error closed, the next file would be number 2, and libraries write their messages there."""
    kept = os.dup(2)
    os.close(2)
    try:
        with lasting():
            file = os.open(tmp_path / "checkpoint", os.O_CREAT | os.O_WRONLY)
            os.close(file)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
    assert file > 2


def test_who_asks_is_told(monkeypatch: pytest.MonkeyPatch, unread: TextIO) -> None:
    monkeypatch.setattr(sys, "stdout", unread)
    with lasting() as out:
        print("words")
        assert not nobody_reads()  # it is buffered
        out.flush()
        assert nobody_reads()
        print("more")
        assert out.isatty() is False
    assert sys.stdout is unread
    assert not nobody_reads()
