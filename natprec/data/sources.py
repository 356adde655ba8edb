"""Where text comes from: a text file, rows of JSON, CSV or parquet, or a dataset of the hub.

Rows are streamed, so that no source is read further than needed; only a text file and a list in JSON are taken whole.
Any of them but parquet may be compressed by gzip.
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from natprec.errors import InputError, first_line
from natprec.utils.json_text import from_json

TEXT_LIMIT = 256 * 2**20
"""Characters of a text file, which is tokenized whole, and of a line of the other kinds, which are streamed."""

GZIP = b"\x1f\x8b"
COMPRESSED = (".bz2", ".xz", ".zst", ".zip", ".7z", ".lz4", ".br", ".tgz", ".tar")


def source_rows(source: str) -> Iterator[Any] | None:
    """Rows of a dataset, one at a time; None for a text file.

    Raises:
        InputError: there is no such file and it cannot be the id of a dataset.
    """
    path = Path(source).expanduser()
    readers = {
        ".jsonl": _jsonl_rows, ".ndjson": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows,
        ".csv": _table_rows, ".tsv": _table_rows,
    }  # fmt: skip
    kind = (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()
    if path.is_dir():
        raise InputError(f"data {source!r} is a folder; name one file in it")
    if path.is_file():
        if kind in COMPRESSED or (kind == ".parquet" and kind != path.suffix.lower()):
            raise InputError(f"data {source!r} is an archive or compressed; unpack it first, only .gz of text is read")
        reader = readers.get(kind)
        return reader(path) if reader else None
    if path.suffix.lower() in {*readers, ".txt", ".md", ".gz"} or not re.fullmatch(
        r"\w[\w.-]*(/[\w.-]+)?(:[^:]*){0,2}", source
    ):
        raise InputError(
            f"data file {source!r} does not exist; check the path, or give a hub dataset as id:config:split"
        )
    return _hub_rows(source)


def whole_text(path: Path) -> str:
    """A text file's content."""
    text = _whole(path)
    if not text.strip():
        raise InputError(f"{str(path)!r} is empty; give a file with text")
    return text


def _whole(path: Path) -> str:
    lines, size = [], 0
    for line in _lines(path):
        lines.append(line)
        size += len(line)
        if size > TEXT_LIMIT:
            raise InputError(
                f"{str(path)!r} has more than {TEXT_LIMIT} characters, too many to be taken whole; "
                "cut it, or give it as .jsonl or .parquet, which are streamed"
            )
    return "".join(lines)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, compressed by gzip or not, with or without a byte order mark."""
    try:
        with path.open("rb") as opened:
            packed = opened.read(len(GZIP)) == GZIP
            opened.seek(0)
            with io.TextIOWrapper(gzip.GzipFile(fileobj=opened) if packed else opened, "utf-8-sig") as file:
                while line := file.readline(TEXT_LIMIT):
                    if len(line) == TEXT_LIMIT:
                        raise InputError(f"{str(path)!r} has a line of {TEXT_LIMIT} characters or more; cut it")
                    yield line
    except UnicodeDecodeError as error:
        bad = f"0x{error.object[error.start]:02x}"
        raise InputError(
            f"{str(path)!r} is not UTF-8 text (byte {bad}: {error.reason}); convert it: iconv -t utf-8"
        ) from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{str(path)!r} is gzip, cut off or damaged ({error}); download it again") from error
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; check the file and its permissions") from error


def _jsonl_rows(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield from_json(line)
            except ValueError as error:
                raise InputError(f"{str(path)!r} line {number} is not JSON ({error}); repair or remove it") from error


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        rows = from_json(_whole(path))
    except ValueError as error:
        raise InputError(f"{str(path)!r} is not JSON ({error}); if each line is an object, name it .jsonl") from error
    if not isinstance(rows, list):
        raise InputError(f"{str(path)!r} holds one {type(rows).__name__}; it must be a list of objects or of texts")
    yield from rows


def _table_rows(path: Path) -> Iterator[Any]:
    """Rows by the names in the first line; whichever of tab, semicolon and comma is most there separates them."""
    lines = _lines(path)
    first = next(lines, "")
    before = csv.field_size_limit(TEXT_LIMIT)
    try:
        yield from csv.DictReader(itertools.chain([first], lines), delimiter=max(",;\t", key=first.count))
    except csv.Error as error:
        raise InputError(f"{str(path)!r} is not a table of text ({error}); give it as .jsonl") from error
    finally:
        csv.field_size_limit(before)


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"reading {str(path)!r} needs pyarrow; run: pip install datasets pyarrow") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: names that are no UTF-8
        cause = first_line(error)
        raise InputError(f"{str(path)!r} is not a readable parquet file ({cause}); download it again") from error


def _hub_rows(source: str) -> Iterator[Any]:
    """Rows of a hub dataset, streamed; the split is `train` unless named."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"reading the hub dataset {source!r} needs datasets; run: pip install datasets pyarrow"
        ) from error
    name, config, split = [*source.split(":"), "", ""][:3]
    try:
        from natprec.models.devices import quiet

        with quiet():
            stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        yield from stream
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"data {source!r} is no file, and the hub dataset cannot be read ({cause}); "
            "check the spelling (id:config:split) and the connection, or give a file"
        ) from error
