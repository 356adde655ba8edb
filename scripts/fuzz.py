"""Every parser on damaged and made-up files: a value or a NatprecError, in bounded time and memory.

    python scripts/fuzz.py --seconds 600                  # each parser for ten minutes
    python scripts/fuzz.py --only plan,gguf --seed 7
    python scripts/fuzz.py --only gguf --coverage         # guided by atheris, where it is installed

A file is mutated in its bytes (flips, cuts, repeats, numbers at their limits), in its tokens (one JSON value, TOML
value or word in place of another), or spliced with another seed. What raises anything else, takes more than `SECONDS`,
or more than `GROWTH` bytes beyond the process, is a finding: it is printed, and its file is kept in --keep. Exit code 1
if there is one. `tests/test_fuzz.py` runs the same for a second each, and the findings of the past.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import re
import signal
import struct
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from natprec.errors import NatprecError
from natprec.utils.memory import growing_by

SECONDS = 10
"""Of computing: other programs may want this machine, too."""
WAITED = 300
"""Seconds after which an input is stopped that does nothing."""
GROWTH = 2**30
LIMITS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
WORDS = (
    b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"1" * 400, b'""', b'"\\ud800"', b"[]", b"{}", b"[" * 5000,
    b'{"a":' * 500, b"\x00", b"\xff\xfe", b"18446744073709551616", b"0.1", b'"int4-g64"', b"\xe2\x80\xa8", b"'''",
)  # fmt: skip


class TooLong(BaseException):
    """No parser's `except Exception` catches it."""


def mutated(seed: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """One to four changes."""
    content = bytearray(seed)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 4))):
        at = draw.randrange(len(content) + 1)
        kind = draw.randrange(9)
        if kind == 0 and content:
            content[at % len(content)] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del content[at : at + draw.choice((1, 8, 64, 4096, len(content)))]
        elif kind == 2:
            part = bytes(content[at : at + draw.choice((1, 16, 256))])
            content[at:at] = part * draw.choice((1, 2, 64))
        elif kind == 3:
            form = draw.choice(("<Q", "<I", "<H", "<B", ">Q"))
            size = struct.calcsize(form)
            content[at : at + size] = struct.pack(form, draw.choice(LIMITS) % 2 ** (8 * size))
        elif kind == 4:
            content[at:at] = draw.choice(WORDS)
        elif kind == 5 and (spans := list(re.finditer(rb'"[^"\n]{0,60}"|-?\d[\d.e+-]*|true|false|null', content))):
            span = draw.choice(spans)
            content[span.start() : span.end()] = draw.choice((*WORDS, draw.choice(spans).group()))
        elif kind == 6:
            other = draw.choice(others)
            content[at:] = other[draw.randrange(len(other) + 1) :]
        elif kind == 7:
            content[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 4, 32))))
        elif content:
            first, last = sorted((at, draw.randrange(len(content) + 1)))
            content[first:last] = content[first:last][::-1]
    return bytes(content)


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within the block time and memory end."""

    def ring(*_: object) -> None:
        raise TooLong(f"longer than {SECONDS} s")

    known = [signal.signal(each, ring) for each in (signal.SIGALRM, signal.SIGPROF)]
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(WAITED)
    try:
        with growing_by(GROWTH):
            yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for each, handler in zip((signal.SIGALRM, signal.SIGPROF), known, strict=True):
            signal.signal(each, handler)


def finding(parse: Callable[[Path], Any], file: Path) -> str | None:
    """What is wrong with what a parser does with a file; None: it gave a value or a NatprecError."""
    try:
        with bounded(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parse(file)
    except NatprecError as error:
        text = str(error)
        return None if text.strip() and len(text) < 5000 else f"its message has {len(text)} characters"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        trace, where = error.__traceback__, ""
        while trace is not None:
            where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
            trace = trace.tb_next
        return f"{type(error).__name__}: {str(error)[:120]} ({where})"
    return None


def _text(file: Path) -> Any:
    from natprec.data.sources import whole_text

    return whole_text(file)


def _rows(file: Path) -> Any:
    from natprec.data.rows import Rows
    from natprec.data.sources import source_rows

    rows = Rows(str(file), None, SimpleNamespace(chat_template=None))
    return list(itertools.islice(rows.texts(source_rows(str(file)) or ()), 100)), rows.left_out()


def _measurement(file: Path) -> Any:
    from natprec.measurement import Measurement

    return Measurement.load(file)


def _plan(file: Path) -> Any:
    from natprec.solver import Plan

    return Plan.load(file)


def _verification(file: Path) -> Any:
    from natprec.evaluation.verification import Verification

    return Verification.load(file)


def _recipe(file: Path) -> Any:
    from natprec.pipeline.recipe import Recipe

    return Recipe.read(file, {"model": str, "eps": float | None, "tokens": int, "rounding": str, "untested": bool})


def _gguf(file: Path) -> Any:
    from natprec.models.gguf_files import check_gguf

    return check_gguf(file)


def _config(file: Path) -> Any:
    from natprec.models.stored_config import StoredConfig, read_description

    folder = file.parent
    file.rename(folder / "config.json")
    try:
        return StoredConfig(folder, read_description(folder))
    finally:
        (folder / "config.json").unlink()


def _headers(file: Path) -> Any:
    from natprec.models.headers import read_headers

    return read_headers([file])


PARSERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "measurement": ("measurement.safetensors", _measurement),
    "plan": ("plan.json", _plan),
    "verification": ("verification.json", _verification),
    "recipe": ("recipe.toml", _recipe),
    "gguf": ("model.gguf", _gguf),
    "config": ("checkpoint.json", _config),
    "headers": ("model.safetensors", _headers),
    "text": ("text.txt", _text),
    "gzip": ("text.txt.gz", _text),
    "jsonl": ("rows.jsonl", _rows),
    "csv": ("rows.csv", _rows),
    "parquet": ("rows.parquet", _rows),
}
"""Parser → the name of its files, and what reads one."""


def seeds(folder: Path) -> dict[str, bytes]:
    """A good file of each kind, small."""
    import gzip

    import gguf
    import numpy as np
    import pyarrow
    import pyarrow.parquet
    from safetensors.numpy import save_file

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.test_own_files import measured, planned, verified

    for made, name in ((measured, "measurement"), (planned, "plan"), (verified, "verification")):
        made().save(folder / PARSERS[name][0])
    recipe = "[about]\nmodel = 'tiny'\n[options]\neps = 0.05\ntokens = 512\nrounding = 'gptq'\n"
    (folder / "recipe.toml").write_text(recipe + "[expected]\nbits_per_weight = 4.5\n")
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_token_list([b"a", b"b", "ü".encode()])
    writer.add_array("some.lengths", [1, 2, 3])
    writer.add_tensor("blk.0.attn_q.weight", np.ones((4, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(64, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 64, "dynamic": False}
    described = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"g": {"targets": ["re:.*q_proj", "Linear"], "weights": weights, "input_activations": None}},
    }  # fmt: skip
    (folder / "checkpoint.json").write_text(json.dumps({"model_type": "llama", "quantization_config": described}))
    save_file({"a.weight": np.ones((2, 3), np.float32), "b": np.zeros(1, np.int8)}, folder / "model.safetensors")
    (folder / "text.txt").write_text("Some words.\nAnd more of them – in UTF-8.\n" * 20)
    (folder / "text.txt.gz").write_bytes(gzip.compress(b"Some words of a text.\n" * 20))
    rows = [{"text": "some words"}, {"messages": [{"role": "user", "content": "hello"}]}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "rows.csv").write_text('text,label\n"some, words",1\nmore,2\n')
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some words", "more"]}), folder / "rows.parquet")
    return {name: (folder / file).read_bytes() for name, (file, _) in PARSERS.items()}


def fuzzed(name: str, good: dict[str, bytes], seconds: float, seed: int, keep: Path | None) -> tuple[int, list[str]]:
    """Inputs tried, and findings, each kind of them once."""
    file_name, parse = PARSERS[name]
    draw, found, count, ends = random.Random(f"{name} {seed}"), dict[str, str](), 0, time.monotonic() + seconds
    corpus, others = [good[name]], list(good.values())
    with tempfile.TemporaryDirectory(prefix="natprec-fuzz-") as folder:
        file = Path(folder) / file_name
        while time.monotonic() < ends:
            content = mutated(draw.choice(corpus), others, draw)
            file.write_bytes(content)
            what = finding(parse, file)
            count += 1
            if what is None and draw.random() < 0.02 and len(corpus) < 200 and len(content) < 1 << 20:
                corpus.append(content)
            kind = what.partition(":")[0] + what.rpartition("(")[2] if what else ""  # the error's type, and where
            if what and kind not in found:
                found[kind] = what
                if keep is not None:
                    keep.mkdir(parents=True, exist_ok=True)
                    (keep / f"{name}-{len(found)}-{file_name}").write_bytes(content)
    return count, list(found.values())


def guided(name: str, good: dict[str, bytes], seconds: float) -> None:
    """The same, guided by which lines run; ends the process."""
    import atheris

    file_name, parse = PARSERS[name]
    folder = Path(tempfile.mkdtemp(prefix="natprec-fuzz-"))
    (folder / "corpus").mkdir()
    (folder / "corpus" / "good").write_bytes(good[name])

    def one(content: bytes) -> None:
        (folder / file_name).write_bytes(content)
        what = finding(parse, folder / file_name)
        if what is not None:
            raise AssertionError(what)

    atheris.instrument_all()
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", str(folder / "corpus")], one)
    atheris.Fuzz()


def main() -> None:
    """One line for each parser, then its findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARSERS))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--coverage", action="store_true", help="with atheris, one parser at a time (--only)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="natprec-seeds-") as folder:
        good = seeds(Path(folder))
    if options.coverage:
        guided(options.only, good, options.seconds)
    wrong = 0
    for name in options.only.split(","):
        count, found = fuzzed(name, good, options.seconds, options.seed, options.keep)
        wrong += len(found)
        print(f"{name:12} {count:8} inputs  {len(found)} findings", flush=True)
        for line in found:
            print(f"    {line}", flush=True)
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
