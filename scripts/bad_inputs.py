"""Bad values for every option of every command, and damaged files of every kind: is each refused in one line?

    python scripts/bad_inputs.py                            # all, some 15 minutes on one core
    python scripts/bad_inputs.py --only solve,push --list
    python scripts/bad_inputs.py --sample 100 --seed 7

Each case runs in this process, in a fresh folder with a tiny model, a text, a measurement, a plan and a checkpoint. It
is survived if the exit code is 2 (3, where the promise is not kept; 130), the last line of standard error is the only
one that refuses, nothing but the output has changed on disk, and it took at most 10 seconds and 1 GB. Prints a line for
each command and one for each case that was not survived, or that was not refused at all; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

HERE = Path(__file__).resolve().parent
SMALL = "--tokens 128 --sequence-length 32 --group-size 32"
OUTPUTS = ("out", "out.toml", "out.partial", ".natprec-out", "report.html")
REFUSED = (2, 3, 130)

GOOD = {
    "quantize": f"--model model --eps 0.05 --data text.txt --out out --eval-tokens 128 {SMALL}",
    "measure": f"--model model --data text.txt --out out {SMALL}",
    "solve": "measured --eps 0.05 --out out",
    "apply": "plan.json --model model --data text.txt --out out --tokens 128 --sequence-length 32",
    "verify": "made --model model --eval-data text.txt --eval-tokens 128",
    "check": "made",
    "compare": "--model model --methods rtn --bits 4 --data text.txt --out out --tokens 128 --eval-tokens 128",
    "inspect": f"--model model --data text.txt --out out {SMALL}",
    "generate": "made --prompt hello --max-new-tokens 2",
    "serve": "made --port 0",
    "eval": "made --model model --tasks piqa --tasks-data tasks --out out",
    "energy": "made --counter none --out out",
    "costs": "--engine natprec --shapes 32x32 --tokens 1 --formats int4-g32 --repeat 1 --out out.toml",
    "report": "made --out out",
    "card": "made --out out",
    "push": "made someone/something --dry-run",
}
"""Arguments with which a command works, but for eval (no such task) and push (no Hub)."""

VALUES: dict[type, tuple[str, ...]] = {
    int: ("x", "-1", "1.5", "", "9" * 30, "1e3", "٣"),
    float: ("x", "-1", "nan", "", "inf", "1e999", "--"),
    str: ("", "wrong", "no\nsuch", "x" * 5000, "~nobody/none", "a\0b", "\udcff"),
    Path: ("", "nowhere/file", "x" * 300, "text.txt/below", "a\0b", "~nobody/none", "\udcff"),
}
"""Type of an option → values that it cannot have."""

FREE = {
    "--name": (), "--out": ("", "x" * 300, "text.txt/below", "a\0b", "text.txt", "model", "model/config.json", "."),
    "--prompt": (), "--system": (), "--text-column": ("wrong",), "--tag": ("", "a b", "no\nsuch"), "--tariff": ("x",),
    "--revision": ("a b", "no\nsuch", ".."), "--grid": ("x", "-1"), "--site": ("wrong",), "--host": ("wrong", "a\0b"),
    "--model": (*VALUES[str], "text.txt", "tasks", "a/b/c", "-"), "--counter": ("wrong", "text.txt", "nowhere.csv"),
}  # fmt: skip
"""Options that nearly any text suits, or that have bad values of their own."""

FINE = {
    ("inspect", "--top", "-1"), ("energy", "--min-seconds", "inf"), ("compare", "--time-limit", "inf"),
}  # fmt: skip

READERS = {
    "text.txt": "quantize", "model/config.json": "quantize", "model/model.safetensors": "quantize",
    "model/tokenizer.json": "measure", "measured": "solve", "plan.json": "apply", "made/config.json": "generate",
    "made/model.safetensors": "verify", "made/plan.json": "card", "made/verification.json": "report",
    "made/tokenizer.json": "generate",
}  # fmt: skip
"""File → the command that needs it whole; other commands get it too where it is an argument."""

MORE = {
    "rows.jsonl": "measure --model model --data rows.jsonl --out out " + SMALL,
    "rows.csv": "measure --model model --data rows.csv --out out " + SMALL,
    "rows.parquet": "measure --model model --data rows.parquet --out out " + SMALL,
    "text.txt.gz": "measure --model model --data text.txt.gz --out out " + SMALL,
    "recipe.toml": "quantize --recipe recipe.toml --out out",
    "model.gguf": "measure --model model.gguf --data text.txt --out out " + SMALL,
    "made/plan.json": "solve made/plan.json --eps 0.05 --out out",
    "made/config.json": "check made",
    "out.toml": "solve measured --eps 0.05 --minimize decode --costs out.toml --out out",
    "adapter/adapter_config.json": "measure --model adapter --data text.txt --out out " + SMALL,
    "adapter/adapter_model.safetensors": "measure --model adapter --data text.txt --out out " + SMALL,
    "energy.json": "energy --replay energy.json --counter none --out out",
    "compare.json": "report made --compare compare.json --out out",
    "eval.json": "report made --eval eval.json --out out",
    "tasks/piqa.jsonl": "eval made --model model --tasks piqa --tasks-data tasks --out out",
}
"""File → another command that reads it."""

DEEP = b"[" * 100_000
DAMAGE: dict[str, bytes | None] = {
    "empty": b"", "zeros": bytes(4096), "noise": bytes(range(256)) * 16, "list": b"[]", "number": b"7", "null": b"null",
    "deep": DEEP, "gguf": b"GGUF" + b"\xff" * 60, "pickle": b"\x80\x04\x95" + bytes(40), "header": b"\xff" * 7 + b"\x00{",
    "words": b'{"model_type": 3, "version": "x", "sites": -1}', "folder": None,
}  # fmt: skip
"""What lies in the place of a file; a folder where it is None."""

HARMLESS = {"text.txt": ("list", "number", "null", "words", "deep")}


@dataclass(frozen=True)
class Case:
    """A command and what is wrong with it.

    Attributes:
        file, damage: a file that is damaged first, and how; none where the arguments are wrong.
    """

    arguments: tuple[str, ...]
    what: str
    file: str = ""
    damage: str = ""

    @property
    def name(self) -> str:
        """One line."""
        return f"{self.arguments[0]} {self.what}"


def options_of(command: str) -> Iterator[tuple[str, type]]:
    """The options of a command that take a value, and its type."""
    import typer

    from natprec.cli import app

    found: Any = typer.main.get_command(app)
    for each in found.commands[command].params:
        kind = each.type_descriptor.annotation
        if each.param_type_name == "option" and not each.is_flag and each.opts[0] != "--help":
            yield each.opts[0], kind if kind in VALUES else str


def cases() -> list[Case]:
    """All of them, in order."""
    found = []
    for command, text in GOOD.items():
        good = text.split()
        for option, kind in options_of(command):
            for value in FREE.get(option, VALUES[kind]):
                if (command, option, value) not in FINE:
                    at = good.index(option) if option in good else None
                    kept = good if at is None else good[:at] + good[at + 2 :]
                    found.append(Case((command, *kept, option, value), f"{option} {value[:24]!r}"))
        if not good[0].startswith("--"):
            for value in ("", "nowhere", "x" * 300, "a\0b", "text.txt", "tasks", "\udcff"):
                found.append(Case((command, value, *good[1:]), f"{value[:24]!r} as {good[0]}"))
        found.append(Case((command, *good, "--no-such"), "--no-such"))
        found.append(Case((command, *good, "more", "words"), "more words"))
    readers = [(file, (command, *GOOD[command].split())) for file, command in READERS.items()]
    for file, arguments in [*readers, *((file, tuple(text.split())) for file, text in MORE.items())]:
        for damage in (*DAMAGE, "half", "gone"):
            if damage not in HARMLESS.get(file, ()):
                found.append(Case(arguments, f"with {file}: {damage}", file, damage))
    return found


def inputs(folder: Path) -> None:
    """Everything that a case may need, good."""
    from fuzz import seeds
    from same_bytes import SIZE, byte_tokenizer, made_up_text, saved_model

    with mock.patch.dict(SIZE, hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=384):
        saved_model(folder / "model", "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True)
    byte_tokenizer(384, False).save_pretrained(folder / "model")
    (folder / "seeds").mkdir()
    seeds(folder / "seeds")
    for file in ("rows.jsonl", "rows.csv", "rows.parquet", "text.txt.gz", "model.gguf", "recipe.toml"):
        shutil.copy(folder / "seeds" / file, folder / file)
    shutil.rmtree(folder / "seeds")
    (folder / "text.txt").write_text(made_up_text(6000))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "piqa.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    (folder / "adapter").mkdir()
    for command, out in (("quantize", "made"), ("measure", "measured"), ("solve", "plan.json"), ("costs", "out.toml")):
        code, err = ran((command, *GOOD[command].replace("out.toml", "out").split()), folder)
        assert code in (0, 3), f"{command} ends with {code} undisturbed: {err[-300:]}"
        (folder / "out").rename(folder / out)


def ran(arguments: tuple[str, ...], folder: Path) -> tuple[int, str]:
    """A command in this process: exit code and standard error; errors that it does not explain come through."""
    from natprec.cli import main

    err = io.StringIO()
    here = Path.cwd()
    os.chdir(folder)
    try:
        with (
            mock.patch.object(sys, "argv", ["natprec", *arguments]), mock.patch.object(sys, "stdin", io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err), warnings.catch_warnings(),
        ):  # fmt: skip
            main()
    except SystemExit as stop:
        return int(stop.code or 0), err.getvalue()
    finally:
        os.chdir(here)
    return 0, err.getvalue()


def spoil(file: Path, damage: str) -> None:
    """Damage a file in place; one that is not there is made."""
    content = file.read_bytes() if file.is_file() else b'{"a": 1}'
    file.unlink(missing_ok=True)
    if damage == "folder":
        file.mkdir()
    elif damage == "half":
        file.write_bytes(content[: len(content) // 2])
    elif damage != "gone":
        file.write_bytes(DAMAGE[damage] or b"")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder that is no output."""
    every = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    mine = {name: path for name, path in every.items() if name.split("/")[0] not in OUTPUTS}
    return {name: path.read_bytes() if path.is_file() else None for name, path in mine.items()}


def fault(case: Case, good: Path) -> tuple[int | None, str]:
    """The exit code, and what is wrong with how the case ended; nothing: it was survived."""
    from fuzz import bounded

    with tempfile.TemporaryDirectory(prefix="natprec-bad-") as scratch:
        folder = Path(shutil.copytree(good, Path(scratch) / "here"))
        if case.file:
            spoil(folder / case.file, case.damage)
        before = contents(folder)
        try:
            with bounded():
                code, err = ran(case.arguments, folder)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            return None, f"{type(error).__name__}: {str(error)[:200]}"
        changed = sorted(name for name, _ in contents(folder).items() ^ before.items())
    lines = err.splitlines()
    refusals = [line for line in lines if line.startswith("natprec: ")]
    if code not in REFUSED:
        return code, f"exit code {code}: {lines[-1][:160] if lines else ''}"
    if code == 2 and (len(refusals) != 1 or lines[-1] != refusals[0] or len(refusals[0]) > 5000):
        return code, f"{len(refusals)} lines refuse: {lines[-1][:160] if lines else 'silence'}"
    if "Traceback" in err or "Warning: " in err:
        return code, f"it says {next(line for line in lines if 'Traceback' in line or 'Warning: ' in line)[:160]}"
    return code, f"it changed {changed[:3]}" if changed else ""


def main() -> None:
    """All that is asked for, then a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="commands, with commas")
    parser.add_argument("--sample", type=int, help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="name each case as it ends, with its exit code")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    wanted = [case for case in cases() if not options.only or case.arguments[0] in options.only.split(",")]
    if options.sample:
        wanted = random.Random(options.seed).sample(wanted, min(options.sample, len(wanted)))
    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="natprec-bad-") as scratch:
        good = Path(scratch) / "good"
        good.mkdir()
        inputs(good)
        for case in wanted:
            code, what = fault(case, good)
            row = counts.setdefault(case.arguments[0], {})
            kind = "fault" if what else f"exit {code}"
            row[kind] = row.get(kind, 0) + 1
            if what or options.list:
                print(f"  {case.name}: {what or f'exit {code}'}", flush=True)
    lost = 0
    for command, row in counts.items():
        lost += row.get("fault", 0)
        print(f"{command:10} {sum(row.values()):5} cases  {json.dumps(row)}")
    print(f"{len(wanted)} cases, {lost} not survived")
    sys.exit(lost > 0)


if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    main()
