"""Where text comes from: a text file, rows of JSON or parquet, or a dataset of the hub.

Rows are streamed, so that no source is read further than needed; only a text file is taken whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from natprec.errors import InputError, unknown
from natprec.models.surroundings import quiet

TEXT_COLUMNS = ("text", "content", "prompt", "document", "article", "instruction", "question")
TEXT_LIMIT = 256 * 2**20
"""Bytes of a text file, which is tokenized whole; the other kinds are streamed."""


def source_rows(source: str) -> Iterator[Any] | None:
    """Rows of a dataset, one at a time; None for a text file.

    Raises:
        InputError: there is no such file and it cannot be the id of a dataset.
    """
    path = Path(source).expanduser()
    readers = {".jsonl": _jsonl_rows, ".json": _json_rows, ".parquet": _parquet_rows}
    if path.is_dir():
        raise InputError(f"data {source!r} is a folder; name one file in it")
    if path.is_file():
        reader = readers.get(path.suffix.lower())
        return reader(path) if reader else None
    if path.suffix.lower() in {*readers, ".txt", ".md"} or not re.fullmatch(
        r"\w[\w.-]*(/[\w.-]+)?(:[^:]*){0,2}", source
    ):
        raise InputError(
            f"data file {source!r} does not exist; check the path, or give a hub dataset as id:config:split"
        )
    return _hub_rows(source)


def whole_text(path: Path) -> str:
    """A text file's content."""
    size = path.stat().st_size
    if size > TEXT_LIMIT:
        raise InputError(
            f"{str(path)!r} has {size} bytes, more than the {TEXT_LIMIT} of a text file; "
            "cut it, or give it as .jsonl or .parquet, which are streamed"
        )
    text = "".join(_lines(path))
    if not text.strip():
        raise InputError(f"{str(path)!r} is empty; give a file with text")
    return text


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, with or without a byte order mark."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from file
    except UnicodeDecodeError as error:
        bad = f"0x{error.object[error.start]:02x}"
        raise InputError(
            f"{str(path)!r} is not UTF-8 text (byte {bad}: {error.reason}); convert it: iconv -t utf-8"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror}; check the file and its permissions") from error


def _jsonl_rows(path: Path) -> Iterator[Any]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise InputError(f"{str(path)!r} line {number} is not JSON ({error}); repair or remove it") from error


def _json_rows(path: Path) -> Iterator[Any]:
    try:
        rows = json.loads("".join(_lines(path)))
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is not JSON ({error}); if each line is an object, name it .jsonl") from error
    if not isinstance(rows, list):
        raise InputError(f"{str(path)!r} holds one {type(rows).__name__}; it must be a list of objects or of texts")
    yield from rows


def _parquet_rows(path: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"reading {str(path)!r} needs pyarrow; run: pip install natprec[data]") from error
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0][:200]
        raise InputError(f"{str(path)!r} is not a readable parquet file ({cause}); download it again") from error


def _hub_rows(source: str) -> Iterator[Any]:
    """Rows of a hub dataset, streamed; the split is `train` unless named."""
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"reading the hub dataset {source!r} needs datasets; run: pip install natprec[data]"
        ) from error
    name, config, split = [*source.split(":"), "", ""][:3]
    try:
        with quiet():
            stream = datasets.load_dataset(name, config or None, split=split or "train", streaming=True)
        yield from stream
    except Exception as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"data {source!r} is no file, and the hub dataset cannot be read ({cause}); "
            "check the spelling (id:config:split) and the connection, or give a file"
        ) from error


def row_texts(rows: Iterable[Any], column: str | None, source: str) -> Iterator[str]:
    """The text of each row that has some; a blank line follows it."""
    for row in rows:
        if isinstance(row, dict):
            if column is None:
                column = next((name for name in TEXT_COLUMNS if name in row), None)
                if column is None:
                    raise InputError(
                        f"{source!r} has no text column, only {', '.join(map(str, row))}; name one with --text-column"
                    )
            elif column not in row:
                raise unknown(f"column of {source!r}:", column, map(str, row))
            row = row[column]
        if row is None:
            continue
        if not isinstance(row, str):
            raise InputError(f"{source!r}: column {column!r} holds {type(row).__name__}, not text; name another column")
        if row.strip():
            yield row + "\n\n"
