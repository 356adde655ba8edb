"""Every parser on damaged files: a value or a NatprecError; `scripts/fuzz.py` does so for as long as one likes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def script() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPTS))
        yield importlib.import_module("fuzz")
        sys.modules.pop("fuzz", None)


@pytest.fixture(scope="module")
def good(script: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    found: dict[str, bytes] = script.seeds(tmp_path_factory.mktemp("seeds"))
    return found


PARSERS = [
    "measurement", "plan", "verification", "recipe", "gguf", "config", "headers", "text", "gzip", "jsonl", "csv",
    "parquet",
]  # fmt: skip


def test_the_list_is_whole(script: Any) -> None:
    assert list(script.PARSERS) == PARSERS


@pytest.mark.parametrize("name", PARSERS)
def test_good_files_are_read(script: Any, good: dict[str, bytes], tmp_path: Path, name: str) -> None:
    file_name, parse = script.PARSERS[name]
    (tmp_path / file_name).write_bytes(good[name])
    parse(tmp_path / file_name)


@pytest.mark.parametrize("name", PARSERS)
def test_damaged_files_are_refused(script: Any, good: dict[str, bytes], name: str) -> None:
    count, found = script.fuzzed(name, good, 1.0, 1, None)
    assert count > 5
    assert found == []


ONE_PAIR = b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7 + b"a"
"""A GGUF of no tensor, up to the type of its one entry."""

FOUND = {
    "recipe": [b"a = " + b"[" * 3000],
    "gguf": [
        ONE_PAIR + b"\x08\0\0\0" + b"\xff" * 7 + b"\x7f",
        ONE_PAIR + (b"\x09\0\0\0" + b"\x09\0\0\0" + b"\x01" + b"\0" * 7) * 5000,
    ],
    "config": [b'{"quantization_config": "' + b"\xed" + b" " * 6000 + b'"}'],
    "csv": [b",".join(b"column%d" % number for number in range(2000)) + b"\n1\n", b"a" * 9000 + b"\n1\n"],
    "headers": [b"\x08\0\0\0\0\0\0\0{\"a\": 1}", b"", b"\xff" * 8],
}  # fmt: skip
"""Files that were findings once."""


@pytest.mark.parametrize("name", FOUND)
def test_past_findings(script: Any, tmp_path: Path, name: str) -> None:
    file_name, parse = script.PARSERS[name]
    for content in FOUND[name]:
        (tmp_path / file_name).write_bytes(content)
        assert script.finding(parse, tmp_path / file_name) is None


def test_a_finding_is_one(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(file: Path) -> Any:
        return {}[file.name]

    def endless(_: Path) -> Any:
        while True:
            pass

    def greedy(_: Path) -> Any:
        return bytearray(3 * 2**30)

    assert script.finding(defective, tmp_path).startswith("KeyError")
    assert script.finding(greedy, tmp_path).startswith("MemoryError")
    monkeypatch.setattr(script, "SECONDS", 1)
    assert script.finding(endless, tmp_path).startswith("TooLong")
