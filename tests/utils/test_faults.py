"""What goes wrong around a run: another run on the same output, a full disk, a clock that jumps, a kill."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from natprec.errors import OutputError
from natprec.utils.atomic_files import write_bytes
from natprec.utils.claims import claimed
from tests.run_command import SMALL, left_behind, natprec


def test_two_runs_on_one_output(tmp_path: Path) -> None:
    held = "import sys; from pathlib import Path; from natprec.utils.claims import claimed\n"
    held += "with claimed(Path(sys.argv[1])): print('claimed', flush=True); sys.stdin.read()"
    out = tmp_path / "out"
    other = subprocess.Popen(
        [sys.executable, "-c", held, str(out)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert other.stdout is not None
    assert other.stdout.readline() == b"claimed\n"
    with pytest.raises(OutputError, match=f"being written by process {other.pid}; wait for it"), claimed(out):
        pass
    other.kill()
    other.wait()
    with claimed(out):
        assert left_behind(tmp_path) == [".natprec-out.lock"], "what a killed run left is no obstacle"
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("command", ["quantize", "measure"])
def test_the_commands_claim_their_output(tmp_path: Path, tiny_folder: Path, text_file: Path, command: str) -> None:
    target = ["--bits", 5] if command == "quantize" else []
    options = ["--model", tiny_folder, "--data", text_file, *SMALL, *target, "--rounding", "rtn"]
    with (tmp_path / ".natprec-out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1 on another.host")
        lock.flush()
        result = natprec(command, *options, "--out", tmp_path / "out")
    assert result.code == 2
    assert "is being written by process 1 on another.host" in result.err
    assert left_behind(tmp_path) == [".natprec-out.lock"]


def test_a_clock_that_jumps(
    tmp_path: Path, tiny_folder: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes back a year at every look; nothing is timed or ordered by it."""
    now = time.time()
    looks = iter(range(10**6))
    monkeypatch.setattr("time.time", lambda: now - 3e7 * next(looks))
    result = natprec("measure", "--model", tiny_folder, "--data", text_file, *SMALL, "--out", tmp_path / "m", "--json")
    assert result.code == 0
    assert left_behind(tmp_path) == ["m"]


def test_a_full_disk(tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    """A tmpfs of 64 kB takes no measurement: one line says so, and what is there is not half a file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(OutputError, match="free space on that disk"):
            write_bytes(disk / "file", b"x" * 100_000)
        assert left_behind(disk) == []
        result = natprec("measure", "--model", tiny_folder, "--data", text_file, *SMALL, "--out", disk / "m")
        assert result.code == 2
        assert "free space on that disk" in result.reason
        assert left_behind(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)
