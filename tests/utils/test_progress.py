"""Without a terminal a stage says every 30 seconds how far it is; on one its bar ends with the time that it took."""

from __future__ import annotations

import io
import sys
import time

import pytest

from natprec.utils.progress import EVERY, Stages


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_line_every_thirty_seconds_with_percent_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Stages().stage("measure", 100) as advance:
        for _ in range(100):
            clock[0] += 2.0
            advance("")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "measure …"
    assert lines[1] == "measure … 15%, 2 min 50 s left"
    assert len(lines) == 1 + int(200 // EVERY)


def test_a_stage_without_steps_says_only_that_it_began(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    with Stages().stage("load model") as advance:
        for _ in range(10):
            clock[0] += 100.0
            advance("")
    assert capsys.readouterr().err.splitlines() == ["load model …"]


def test_bars_begin_below_each_other_and_end_with_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("COLUMNS", "100")
    stages = Stages()
    for name in ("measure", "held-out text, written by the model"):
        with stages.stage(name, 2) as advance:
            advance("")
            advance("")
    lines = [line for line in shown.getvalue().replace("\r", "\n").splitlines() if "took" in line]
    assert len(lines) >= 2
    assert len({line.index("━") for line in lines}) == 1
