"""What `bad_inputs.py` tries: commands that work, bad values for each of their options, files to damage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SMALL = "--tokens 128 --sequence-length 32 --group-size 32"

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
    "energy": "made --counter none --batch 1 --prompt-tokens 8 --new-tokens 4 --min-seconds 0.1 --out out",
    "costs": "--engine natprec --shapes 32x32 --tokens 1 --formats int4-g32 --repeat 1 --out out.toml",
    "report": "made --out out",
    "card": "made --out out",
    "push": "made someone/something --dry-run",
    "landscape": "--taef2 taef2 --repeats 1 --out out",
}
"""Arguments with which a command works, but for eval (no such task), push (no Hub) and landscape (no such network)."""

MANY = "9" * 30

VALUES: dict[type, tuple[str, ...]] = {
    int: ("x", "-1", "1.5", "", MANY, "1e3", "٣"),
    float: ("x", "-1", "nan", "", "inf", "1e999", "--"),
    str: ("", "wrong", "no\nsuch", "x" * 5000, "~nobody/none", "a\0b", "\udcff"),
    Path: ("", "nowhere/file", "x" * 300, "text.txt/below", "a\0b", "~nobody/none", "\udcff"),
}
"""Type of an option → values that it cannot have."""

FREE = {
    "--name": (), "--out": ("", "x" * 300, "text.txt/below", "a\0b", "text.txt", "model", "model/config.json", "."),
    "--prompt": ("\udcff",), "--system": ("\udcff",), "--text-column": (), "--tag": ("", "a b", "no\nsuch"),
    "--tariff": ("x",),
    "--revision": ("a b", "no\nsuch", ".."), "--grid": ("x", "-1"), "--site": ("wrong",), "--host": ("wrong", "a\0b"),
    "--model": (*VALUES[str], "text.txt", "tasks", "a/b/c", "-"), "--counter": ("wrong", "text.txt", "nowhere.csv"),
}  # fmt: skip
"""Options that nearly any text suits, or that have bad values of their own."""

FINE = {
    ("inspect", "--top", MANY), ("generate", "--max-new-tokens", MANY),
}  # fmt: skip
"""Command, option and value that go together: as many as there are."""

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

DAMAGE: dict[str, bytes | None] = {
    "empty": b"", "zeros": bytes(4096), "noise": bytes(range(256)) * 16, "list": b"[]", "number": b"7", "null": b"null",
    "deep": b"[" * 100_000, "gguf": b"GGUF" + b"\xff" * 60, "pickle": b"\x80\x04\x95" + bytes(40),
    "header": b"\xff" * 7 + b"\x00{", "words": b'{"model_type": 3, "version": "x", "sites": -1}', "folder": None,
}  # fmt: skip
"""What lies in the place of a file; a folder where it is None."""

HARMLESS = {
    "text.txt": ("list", "number", "null", "words", "deep", "half"),
    "made/verification.json": ("gone",),
}
"""File → damage after which there still is one: a text is a text, a checkpoint need not have been verified."""


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
