"""Running the command line inside the test's process: importing torch again takes seconds."""

from __future__ import annotations

import contextlib
import io
import sys
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from natprec.cli import main

SMALL = ("--tokens", "512", "--sequence-length", "64", "--group-size", "32")
"""Calibration options that suit a tiny model."""


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last line of standard error, which must be the only one that is not progress."""
        lines = self.err.splitlines()
        assert all(line.endswith(" …") or line.startswith("measured ") for line in lines[:-1]), self.err
        assert lines[-1].startswith("natprec: "), self.err
        return lines[-1]


def natprec(*arguments: object) -> Result:
    """`natprec ARGUMENTS`: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["natprec", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Result(code, out.getvalue(), err.getvalue())


def left_behind(folder: Path) -> list[str]:
    """Everything in a folder, hidden names too."""
    return sorted(entry.name for entry in folder.iterdir())
