"""Whether waiting threads sleep is decided before torch is loaded, and the user decides first."""

from __future__ import annotations

import os

import pytest

from natprec.utils.threads import BRIEF, wait_passively


def told(command: str, load: float, monkeypatch: pytest.MonkeyPatch, **given: str) -> dict[str, str]:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    environment = dict(given)
    wait_passively(command, environment)
    return environment


def test_long_jobs_wait_passively_and_writing_does_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert told("quantize", 0.0, monkeypatch) == BRIEF
    assert told("generate", 0.0, monkeypatch) == {}
    assert told("serve", 8.0, monkeypatch) == BRIEF
    assert told("quantize", 8.0, monkeypatch, OMP_WAIT_POLICY="ACTIVE") == {"OMP_WAIT_POLICY": "ACTIVE"}
