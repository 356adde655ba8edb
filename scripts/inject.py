"""Does a run survive a failing disk, or too little memory? Every call that can fail, fails once.

    python scripts/inject.py                                # all commands, all kinds, every point
    python scripts/inject.py --commands quantize,solve --kinds write,rename --most 40

A shim in C (`inject.c`, loaded with LD_PRELOAD; it needs `cc` and Linux) lets the n-th write, fsync, rename, opening
for writing, read or tensor allocation of a command fail, for n = 1, 2, 3 … up to as many as the command makes. After
each run nothing may be half-written: the output is absent, as it was before, or whole; the exit code is one that the
README knows, the last line says what failed, and neither the inputs nor anything beside the output has changed.
Prints a line per command and kind, and each point that did not survive; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS = {"write": 1, "sync": 2, "rename": 3, "read": 4, "allocation": 5, "open": 6}
CODES = (0, 2, 3, 4)
SMALL = ("--tokens", "128", "--sequence-length", "32", "--group-size", "32")
TIMED = ("seconds", "date", "duration", "checksum", "command")
"""Keys of natprec's own files that differ from run to run."""
LISTED = "natprec/written.json"
"""Digests of all other files, those with a date in them too."""


@dataclass(frozen=True)
class Case:
    """A command and what it writes.

    Attributes:
        arguments: with MODEL, TEXT, OUT and BEFORE in them.
        out: the name of what it writes, in the scratch folder.
        before: what is there before it: the name of an earlier case's output, copied to `out`.
    """

    arguments: str
    out: str
    before: str | None = None


CASES = {
    "measure": Case("measure --model MODEL --data TEXT --out OUT {small}", "measured"),
    "solve": Case("solve measured --eps 0.05 --out OUT", "solved.json"),
    "apply": Case("apply solved.json --model MODEL --data TEXT --out OUT --tokens 128 --sequence-length 32", "applied"),
    "quantize": Case("quantize --model MODEL --eps 0.05 --data TEXT --out OUT --eval-tokens 128 {small}", "made"),
    "overwrite": Case(
        "quantize --model MODEL --bits 6 --data TEXT --out OUT --overwrite --eval-tokens 128 {small}", "again", "made"
    ),
    "verify": Case("verify OUT --model MODEL --eval-data TEXT --eval-tokens 128", "judged", "made"),
}


def preloaded() -> ctypes.CDLL:
    """The shim; this process starts itself anew with it, once."""
    shim = os.environ.get("NATPREC_INJECT")
    if shim is None:
        shim = str(Path(tempfile.mkdtemp(prefix="natprec-inject-")) / "inject.so")
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", shim, HERE / "inject.c", "-ldl"], check=True)
        env = {**os.environ, "NATPREC_INJECT": shim, "LD_PRELOAD": shim, "OMP_NUM_THREADS": "1"}
        env["PYTHONPATH"] = os.pathsep.join((str(HERE.parent), env.get("PYTHONPATH", "")))
        os.execve(sys.executable, [sys.executable, *sys.argv], env)
    return ctypes.CDLL(shim)


def ran(arguments: list[str], folder: Path, kind: str, number: int, said: Path) -> tuple[int, int, bool]:
    """The command in a fork of this process: exit code, calls of the kind, and whether one failed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        from natprec.cli import main

        shim, code = ctypes.CDLL(os.environ["NATPREC_INJECT"]), 99
        os.chdir(folder)
        with said.open("w") as sys.stderr, open(os.devnull, "w") as sys.stdout:
            sys.argv = ["natprec", *arguments]
            try:
                shim.inject_arm(KINDS[kind], number, str(folder).encode())
                main()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException as error:  # what the command line did not turn into a message
                where = traceback.extract_tb(error.__traceback__)[-1]
                sys.stderr.write(f"Traceback: {type(error).__name__}: {error} ({where.filename}:{where.lineno})\n")
            found = [shim.inject_seen(), shim.inject_fired()]
            shim.inject_arm(0, 0, b"")
            os.write(writer, json.dumps(found).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    seen, fired = json.loads(text) if text else (0, 1)
    return (os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)), seen, bool(fired)


def contents(path: Path) -> dict[str, str]:
    """File → digest of what must not differ from run to run."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    named = {str(file.relative_to(path)): file for file in files if file.is_file()}
    return {name: "" if name == LISTED else _digest(file) for name, file in named.items()}


def _digest(file: Path) -> str:
    content = file.read_bytes()
    if file.suffix == ".json":
        content = json.dumps(_lasting(json.loads(content)), sort_keys=True).encode()
    elif content[8:9] == b"{" and b"natprec" in content[:4096]:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        described = {name: value for name, value in header.get("__metadata__", {}).items() if name != "checksum"}
        if "natprec" in described:
            described["natprec"] = _lasting(json.loads(described["natprec"]))
        header["__metadata__"] = described
        content = json.dumps(header, sort_keys=True).encode() + content[8 + size :]
    return hashlib.sha256(content).hexdigest()


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _lasting(each) for name, each in value.items() if name not in TIMED}
    return [_lasting(each) for each in value] if isinstance(value, list) else value


def faults(case: Case, folder: Path, code: int, said: Path, whole: dict[str, str], known: set[str]) -> list[str]:
    """What is wrong after a run in which a call failed."""
    found, err = [], said.read_text()
    last = (err.strip().splitlines() or [""])[-1]
    if code not in CODES or "Traceback" in err:
        found.append(f"exit code {code}: {last[:160]}")
    elif code and not last.startswith("natprec: ") and code != 3:
        found.append(f"exit code {code} without a reason: {last[:160]}")
    out = folder / case.out
    now = contents(out) if out.exists() else {}
    allowed = [whole] if code in (0, 3) else [{}, whole]
    if case.before is not None and code not in (0, 3):
        allowed.append(contents(folder / case.before))
    if now not in allowed and not (code in (2, 4) and _all_but_verdict(now, whole)):
        differing = sorted(set(now.items()) ^ set(whole.items()))[:2]
        found.append(f"exit code {code}, and the output is neither whole nor as it was: {differing}")
    left = {entry.name for entry in folder.iterdir()} - known - {case.out, f"{case.out}.partial"}
    if left:
        found.append(f"left behind: {sorted(left)[:3]}")
    return found


def _all_but_verdict(now: dict[str, str], whole: dict[str, str]) -> bool:
    """Whether a checkpoint is whole, and only its verdict is not there: exit code 4, or verifying failed."""
    return now == {name: value for name, value in whole.items() if name != "verification.json"}


def main() -> None:
    """All that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", default=",".join(CASES))
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--most", type=int, default=10**6, help="points of a kind, spread over all of them")
    options = parser.parse_args()
    preloaded()
    from same_bytes import SIZE, byte_tokenizer, made_up_text, saved_model

    lost, commands = 0, options.commands.split(",")
    with tempfile.TemporaryDirectory(prefix="natprec-inject-") as scratch:
        folder = Path(scratch) / "here"
        folder.mkdir()
        SIZE.update(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=384)
        saved_model(folder / "model", "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True)
        byte_tokenizer(384, False).save_pretrained(folder / "model")
        (folder / "text.txt").write_text(made_up_text(6000))
        said = Path(scratch) / "said"
        for name, case in CASES.items():
            words = case.arguments.replace("MODEL", "model").replace("TEXT", "text.txt").replace("OUT", case.out)
            arguments = [each for word in words.split() for each in (SMALL if word == "{small}" else (word,))]
            _fresh(folder, case)
            code, _, _ = ran(arguments, folder, "write", 0, said)
            if code not in (0, 3):
                sys.exit(f"{name} ends with {code} undisturbed: {said.read_text()[-300:]}")
            whole = contents(folder / case.out)
            kept = folder.parent / f"kept-{name}"
            (folder / case.out).rename(kept)
            for kind in options.kinds.split(",") if name in commands else ():
                lost += _points(name, case, arguments, folder, kind, options.most, whole, said)
            if not (folder / case.out).exists():
                kept.rename(folder / case.out)
    print(f"{lost} points were not survived" if lost else "all survived")
    sys.exit(lost > 0)


def _fresh(folder: Path, case: Case) -> None:
    out = folder / case.out
    for path in (out, folder / f"{case.out}.partial"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if case.before is not None:
        shutil.copytree(folder / case.before, out)


def _points(
    name: str, case: Case, arguments: list[str], folder: Path, kind: str, most: int, whole: dict[str, str], said: Path
) -> int:
    """One command, one kind: how many points were not survived."""
    _fresh(folder, case)
    inputs = {each: contents(folder / each) for each in ("model", "text.txt")}
    _, count, _ = ran(arguments, folder, kind, 0, said)
    _fresh(folder, case)
    known = {entry.name for entry in folder.iterdir()} | {case.out}
    step, lost, tried, codes = max(1, -(-count // most)), 0, 0, dict[int, int]()
    for number in range(1, count + 1, step):
        _fresh(folder, case)
        code, _, fired = ran(arguments, folder, kind, number, said)
        tried += fired
        codes[code] = codes.get(code, 0) + 1
        found = faults(case, folder, code, said, whole, known) if fired else []
        if any(contents(folder / each) != value for each, value in inputs.items()):
            found.append("an input has changed")
        for line in found:
            print(f"  {name}: {kind} {number} of {count}: {line}", flush=True)
        lost += bool(found)
        for entry in folder.iterdir():
            if entry.name not in known | {f"{case.out}.partial"}:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _fresh(folder, case)
    if case.before is not None:
        shutil.rmtree(folder / case.out)
    by_code = ", ".join(f"{times} × exit {code}" for code, times in sorted(codes.items()))
    print(
        f"{name:10} {kind:10} {tried:4} of {count:4} calls failed: {by_code or 'none'}; {lost} not survived", flush=True
    )
    return lost


if __name__ == "__main__":
    main()
