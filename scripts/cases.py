"""Every case of a folder: is what natprec does with it right, refused in time with one sentence, or a fault?

    python scripts/cases.py ../shared/cases
    python scripts/cases.py FOLDER --only c01,c05 --engine transformers --json

A case is a script that makes an input (`python CASE.py FOLDER`) and says in its docstring, after `Then:`, which natprec
commands to run on it, with FOLDER and OUT in them. Of each there is one row:
right    every command ends with 0, and `case_checks.py` finds nothing that is silently wrong
refused  one line, exit code 2, before anything was measured and within --soon seconds of having loaded the model
late     refused after that
fault    a traceback, another exit code, too long, several lines, or a finding
Exit code 1 if a row is a fault or late.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

from case_checks import Trial, findings

from natprec.utils.records import without_places

WIDTH = 80
GOOD = ("right", "refused")
LOADING, MEASURING = "load model …", "measure …"
ENDINGS = {None: "it ran too long", 3: "the promise is not kept"}


@dataclass
class Row:
    """What became of a case.

    Attributes:
        seconds: of all its commands.
        since_start, after_loading: seconds from the start and the end of loading to the end of the last command;
            None: it did not come to that.
        says: the refusal, or what is wrong.
    """

    case: str
    verdict: str = "right"
    seconds: float = 0.0
    since_start: float | None = None
    after_loading: float | None = None
    says: list[str] = field(default_factory=list)

    def text(self) -> str:
        """At most `WIDTH` columns."""
        loaded = "" if self.after_loading is None else f"{self.after_loading:7.1f}"
        head = f"{self.case[:30]:<30} {self.verdict:<8} {self.seconds:7.1f} {loaded:>7}"
        indent = {"initial_indent": "    ", "subsequent_indent": "      "}
        return "\n".join([head.rstrip(), *(textwrap.fill(line, WIDTH, **indent) for line in self.says)])


@dataclass(frozen=True)
class Ran:
    """One command: its exit code (None: it took too long), what it said, and when: lines with their seconds."""

    code: int | None
    out: str
    timed: list[tuple[float, str]]
    seconds: float

    @property
    def err(self) -> list[str]:
        """Lines of standard error."""
        return [line for _, line in self.timed]

    @property
    def reasons(self) -> list[str]:
        """Lines that refuse."""
        return [line for line in self.err if line.startswith("natprec: ")]

    def since(self, began: str, next_stage: bool = False) -> float | None:
        """Seconds from the beginning of a stage, or of the stage after it, to the end."""
        stages = [(at, line) for at, line in self.timed if line.endswith(" …")]
        place = next((index for index, (_, line) in enumerate(stages) if line == began), len(stages)) + next_stage
        return self.seconds - stages[place][0] if place < len(stages) else None


def commands(script: Path) -> list[list[str]]:
    """The arguments of `natprec`, one list for each command of the docstring."""
    said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    lines = [line.removeprefix("Then:") for line in said.splitlines() if line.startswith("Then:")]
    return [shlex.split(each)[1:] for line in lines for each in line.split(";") if each.split()[:1] == ["natprec"]]


def run(arguments: Sequence[str], folder: Path, limit: float) -> Ran:
    """`natprec ARGUMENTS` in a folder."""
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "natprec", *arguments], cwd=folder, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    out: list[str] = []
    err: list[tuple[float, str]] = []

    def collect(stream: IO[str]) -> None:
        err.extend((time.monotonic() - start, line.rstrip("\n")) for line in stream)

    readers = (
        threading.Thread(target=lambda stream: out.append(stream.read()), args=(process.stdout,)),
        threading.Thread(target=collect, args=(process.stderr,)),
    )
    for reader in readers:
        reader.start()
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        code = None
    seconds = time.monotonic() - start
    for reader in readers:
        reader.join()
    return Ran(code, "".join(out), err, seconds)


def judged(row: Row, ran: Ran, arguments: Sequence[str], source: Path, soon: float) -> bool:
    """Enter into the row what a command did; whether the next one is to be run."""
    row.seconds += ran.seconds
    row.since_start, row.after_loading = ran.since(LOADING), ran.since(LOADING, next_stage=True)
    if ran.code == 0:
        made = Path(arguments[arguments.index("--out") + 1]) if "--out" in arguments else None
        found = [] if made is None else findings(Trial(source, made, arguments, ran.out + "\n".join(ran.err)))
        row.says += found
        row.verdict = "fault" if found else row.verdict
        return True
    if ran.code == 2 and len(ran.reasons) == 1 and ran.err[-1] == ran.reasons[0]:
        late = MEASURING in ran.err or (row.after_loading or 0.0) > soon
        row.verdict = "late" if late else "refused"
        row.says.append(ran.reasons[0].removeprefix("natprec: "))
        return False
    row.verdict = "fault"
    last = next((line for line in reversed(ran.err) if line.strip()), "")
    ended = ENDINGS.get(ran.code, f"exit code {ran.code}: {last}")
    row.says.append(f"{arguments[0]}: {ended}")
    return False


def tried(script: Path, options: argparse.Namespace) -> Row:
    """One case, in a folder of its own."""
    row = Row(script.stem)
    with tempfile.TemporaryDirectory(prefix="natprec-case-") as scratch:
        source, made = Path(scratch) / "input", Path(scratch) / "made"
        source.mkdir()
        input_made = subprocess.run(
            [sys.executable, str(script), str(source)], cwd=scratch, capture_output=True, text=True, check=False
        )
        asked = commands(script)
        if input_made.returncode or not asked:
            why = input_made.stderr.strip().splitlines()[-1:] or ["its docstring has no command after Then:"]
            return Row(script.stem, "fault", says=[f"the input cannot be made: {without_places(why[0])}"])
        for command in asked:
            arguments = [part.replace("FOLDER", str(source)) for part in command]
            arguments = [str(made) if part == "OUT" else part for part in arguments]
            if options.engine and arguments[0] == "quantize" and "--engine" not in arguments:
                arguments += ["--engine", options.engine]
            if not judged(row, run(arguments, Path(scratch), options.limit), arguments, source, options.soon):
                break
    row.says = [without_places(line) for line in row.says]
    return row


def main() -> None:
    """All cases, a row each as it is known, then how many there are of each verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("../shared/cases"))
    parser.add_argument("--only", default="", help="beginnings of names, with commas between")
    parser.add_argument("--engine", help="for quantize, where a case names none")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds that one command may take")
    parser.add_argument("--soon", type=float, default=2.0, help="seconds from the start of loading to a refusal")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    wanted = tuple(options.only.split(","))
    scripts = [path for path in sorted(options.folder.glob("c[0-9]*.py")) if path.name.startswith(wanted)]
    if not scripts:
        parser.error(f"no case c*.py in {str(options.folder)!r} begins like {options.only!r}")
    if not options.json:
        print(f"{'case':<30} {'verdict':<8} {'seconds':>7} {'loaded':>7}")
    rows = []
    for script in scripts:
        rows.append(tried(script.absolute(), options))
        if not options.json:
            print(rows[-1].text(), flush=True)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in (*GOOD, "late", "fault")}
    if options.json:
        print(json.dumps({"cases": [asdict(row) for row in rows], "counts": counts}, indent=2))
    else:
        print("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    sys.exit(any(row.verdict not in GOOD for row in rows))


if __name__ == "__main__":
    main()
