"""Bad values for every option of every command, and damaged files of every kind: is each refused in one line?

    python scripts/bad_inputs.py                            # all, some 15 minutes on one core
    python scripts/bad_inputs.py --only solve,push --list
    python scripts/bad_inputs.py --sample 100 --seed 7
    python scripts/bad_inputs.py --match "^report '' as|verification.json: folder"

Each case runs in this process, in a fresh folder with a tiny model, a text, a measurement, a plan and a checkpoint. It
is survived if the exit code is 2 (3, where the promise is not kept; 130), the last line of standard error is the only
one that refuses, nothing but the output has changed on disk, and it took at most 10 seconds of computing and 1 GB.
Prints a line for each command and one for each case that was not survived; exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

from bad_cases import DAMAGE, GOOD, Case, cases

HERE = Path(__file__).resolve().parent
OUTPUTS = ("out", "out.toml", "out.partial", ".natprec-out", "report.html")
REFUSED = (2, 3, 130)


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
    parser.add_argument("--match", help="a regular expression that the names of the cases, as --list has them, have")
    parser.add_argument("--files", action="store_true", help="damaged files alone")
    parser.add_argument("--sample", type=int, help="so many, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true", help="name each case as it ends, with its exit code")
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1")
    wanted = [case for case in cases() if not options.only or case.arguments[0] in options.only.split(",")]
    wanted = [case for case in wanted if case.file or not options.files]
    wanted = [case for case in wanted if not options.match or re.search(options.match, case.name)]
    if options.sample:
        wanted = random.Random(options.seed).sample(wanted, min(options.sample, len(wanted)))
    counts: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory(prefix="natprec-bad-") as scratch:
        good = Path(scratch) / "good"
        good.mkdir()
        inputs(good)
        for number, case in enumerate(wanted):
            if number % 100 == 0:
                print(f"{number} of {len(wanted)} cases", file=sys.__stderr__, flush=True)
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
