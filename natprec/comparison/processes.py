"""One subprocess per method: a peer's crash, clash or endless loop ends that process and becomes a status."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from natprec.comparison.methods import PEERS, Method
from natprec.comparison.peers.worker import Job
from natprec.utils.atomic_files import write_json
from natprec.utils.human import human_seconds
from natprec.utils.records import public_name, without_places

FIND = "import importlib.util, sys; sys.exit(importlib.util.find_spec(sys.argv[1]) is None)"

LAST_WORDS = 10.0
"""Seconds for the end of a log, which a process that left the group might hold open."""


def run_job(job: Job, method: Method, folder: Path, python: str, time_limit: float) -> dict[str, Any]:
    """Start the worker in a clean folder and wait for it.

    Args:
        python: the interpreter that has the peer.
        time_limit: seconds, after which the process and its children are ended.
    Returns:
        What the worker reports; `status` is `ok` or the reason why it is not.
    """
    if not _has(python, method):
        name = public_name(python)
        return {"status": f"not installed: {name} has no {method.module}; pip install {method.package}, or --python"}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_json(folder / "job.json", asdict(job))
    log = folder / "log.txt"
    process = subprocess.Popen(
        [python, str(PEERS / "worker.py"), str(folder), str(method.file)],
        cwd=folder,
        env=_environment(method),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    writer = threading.Thread(target=_write_log, args=(process.stdout, log), daemon=True)
    writer.start()
    try:
        code = process.wait(time_limit)
    except subprocess.TimeoutExpired:
        return {"status": f"stopped after {human_seconds(time_limit)}; raise --time-limit"}
    finally:
        _end(process)
        writer.join(LAST_WORDS)
    if not (folder / "result.json").is_file():
        return {"status": f"{_died(code)}; see {folder.name}/{log.name}"}
    result = json.loads((folder / "result.json").read_text())
    result["status"] = without_places(result["status"])
    write_json(folder / "result.json", result)
    return result


def _write_log(lines: IO[bytes], log: Path) -> None:
    """What a process says, line by line as it comes, without the places that it names."""
    with log.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(without_places(line.decode(errors="replace")))
            file.flush()


def _has(python: str, method: Method) -> bool:
    """Whether an interpreter finds the peer; asked without importing it."""
    return subprocess.run([python, "-c", FIND, method.module], env=_environment(method), check=False).returncode == 0


def _environment(method: Method) -> dict[str, str]:
    """Offline: a peer must not fetch text or weights of its own. natprec is found where this one is."""
    added = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if method.own:
        added["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PEERS.parents[2]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, **added}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Also what it started: its own session is one process group."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    elif process.poll() is None:
        process.kill()
    process.wait()


def _died(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def interpreter(name: str, method: Method, chosen: dict[str, str]) -> str:
    """The one named for the method, for all peers, or this one; natprec runs in this one."""
    return chosen.get(name) or (None if method.own else chosen.get("")) or sys.executable
