"""Token windows to measure and verify on: from a file, a hub dataset, or written by the model itself.

Every source becomes windows of equal length without padding. If calibration and held-out text come
from one source they get different windows of it, whatever the number asked for. Given the same
source, counts and seed the tokens are the same on every run; `data_digest` says so.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natprec.errors import InputError, ModelError, unknown
from natprec.models import quiet

Split = Literal["calibration", "held-out"]
Progress = Callable[[int, int], None]
"""Told (tokens done, tokens in all)."""

TEXT_COLUMNS = ("text", "content", "prompt", "document", "article", "instruction", "question")
TEXT_LIMIT = 256 * 2**20
"""Bytes of a text file, which is tokenized whole; the other kinds are streamed."""
POOL = 4
"""Windows read from a stream for each one used, so that they are spread over more documents."""
HELD_OUT = 5
"""One window of five is held out."""
GENERATE_BATCH = 16


def load_tokens(
    tokenizer: Any,
    source: str | None,
    *,
    sequences: int,
    length: int,
    split: Split,
    shared: bool = False,
    model: nn.Module | None = None,
    seed: int = 0,
    text_column: str | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Windows of tokens, each beginning with bos where the tokenizer normally puts it.

    A text file is tokenized whole and its windows are spread evenly over it; if shared, calibration
    takes from its first 80 % and held-out from the rest. Rows of a dataset are read until there are
    several windows to choose from; if shared, every fifth window is held out.

    Args:
        tokenizer: of transformers.
        source: a .jsonl, .json, .parquet or text file, a hub dataset as `id[:config[:split]]`, or None:
            the model writes the text, with a seed of its own for each split.
        sequences: number of windows.
        length: tokens in each, bos included.
        split: which of the two disjoint parts.
        shared: whether both parts come out of this source.
        model: writes the text without a source; with one, tokens are checked against its vocabulary.
        seed: for written text only.
        text_column: by default the first of `TEXT_COLUMNS` that the rows have.
        progress: called while text is streamed or written.
    Returns:
        (sequences, length), int64, on the CPU.
    Raises:
        InputError: nothing to read, not enough of it, or not text.
        ModelError: the model's own predictions cannot be sampled.
    """
    prefix = _bos_prefix(tokenizer)
    if sequences < 1 or length < 2:
        raise InputError(f"{sequences} sequences of {length} tokens are no data; ask for at least 1 of at least 2")
    if source is None:
        if model is None:
            raise InputError("no text and no model to write it; name a file or hub dataset with --data")
        tokens = generate_tokens(model, tokenizer, sequences, length, 2 * seed + (split == "held-out"), progress)
        source = "the model's own text"
    else:
        body = length - len(prefix)
        windows, candidates = _windows(tokenizer, source, sequences, body, split, shared, text_column, progress)
        if len(candidates) < sequences:
            part = f"the {split} part of {source!r}" if shared else repr(source)
            raise InputError(
                f"{part} is too short: {len(candidates) * length} tokens in whole windows of {length} found, "
                f"{sequences * length} needed; lower --tokens or give more text"
            )
        spread = [candidates[(2 * i + 1) * len(candidates) // (2 * sequences)] for i in range(sequences)]
        tokens = torch.cat([torch.tensor(prefix, dtype=torch.int64).expand(sequences, -1), windows[spread]], dim=1)
    _refuse_useless(tokens[:, len(prefix) :], source, model)
    return tokens


def generate_tokens(
    model: nn.Module, tokenizer: Any, sequences: int, length: int, seed: int, progress: Progress | None = None
) -> Tensor:
    """Text that the model itself writes, at temperature 1 from its whole distribution.

    Sequences begin with bos, or with a random token where the tokenizer has none, and go on past eos.
    All random numbers come from one CPU generator; torch's global state is not touched.

    Returns:
        (sequences, length), int64, on the CPU.
    Raises:
        ModelError: the model's probabilities are not numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    done = []
    with torch.no_grad():
        for start in range(0, sequences, GENERATE_BATCH):
            rows = min(GENERATE_BATCH, sequences - start)
            if tokenizer.bos_token_id is None:
                tokens = torch.randint(len(tokenizer), (rows, 1), generator=generator)
            else:
                tokens = torch.full((rows, 1), tokenizer.bos_token_id)
            past = None
            while tokens.shape[1] < length:
                # a model without such a cache (recurrent ones) reads all of it again
                step = {"input_ids": tokens} if past is None else {"input_ids": tokens[:, -1:], "past_key_values": past}
                step["input_ids"] = step["input_ids"].to(device)
                output = model(**step, use_cache=True)
                past = getattr(output, "past_key_values", None)
                chances = output.logits[:, -1].float().softmax(dim=-1).cpu()
                if not bool(torch.isfinite(chances).all()):
                    raise ModelError(
                        f"the model's predictions after {tokens.shape[1]} tokens are NaN; "
                        "check the checkpoint, or give text with --data"
                    )
                tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], dim=1)
                if progress is not None:
                    progress(start * length + rows * tokens.shape[1], sequences * length)
            done.append(tokens)
    return torch.cat(done)


def data_digest(tokens: Tensor) -> str:
    """Which tokens these are: 16 hex digits of sha256 over shape and int64 values."""
    content = tokens.to("cpu", torch.int64).contiguous().numpy().astype("<i8").tobytes()
    return hashlib.sha256(f"{tuple(tokens.shape)};".encode() + content).hexdigest()[:16]


def _windows(
    tokenizer: Any,
    source: str,
    sequences: int,
    body: int,
    split: Split,
    shared: bool,
    text_column: str | None,
    progress: Progress | None,
) -> tuple[Tensor, list[int]]:
    """All windows, (n, body), and the numbers of those that the split may use."""
    rows = _rows(source)
    if rows is None:
        ids = _encode(tokenizer, [_whole_text(Path(source).expanduser())])
        count = len(ids) // body
        cut = count * (HELD_OUT - 1) // HELD_OUT
        part = range(count) if not shared else range(cut) if split == "calibration" else range(cut, count)
        return torch.tensor(ids[: count * body]).view(-1, body), list(part)
    share = HELD_OUT if shared else 1
    wanted = POOL * sequences * share * body
    ids = []
    for batch in _batches(_texts(rows, text_column, source)):
        ids += _encode(tokenizer, batch)
        if progress is not None:
            progress(min(len(ids), wanted), wanted)
        if len(ids) >= wanted:
            break
    if not ids:
        raise InputError(f"{source!r} is empty: no row has text; give a source with text")
    count = min(len(ids), wanted) // body
    chosen = [i for i in range(count) if not shared or (i % HELD_OUT == HELD_OUT - 1) == (split == "held-out")]
    return torch.tensor(ids[: count * body], dtype=torch.int64).view(-1, body), chosen


def _encode(tokenizer: Any, texts: list[str]) -> list[int]:
    """The tokens of all texts in one list, without special ones. Their length is no mistake: be quiet."""
    with quiet():
        encoded = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    return [token for ids in encoded for token in ids]


def _bos_prefix(tokenizer: Any) -> list[int]:
    """[bos] if the tokenizer puts it before text, else []."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else []


def _refuse_useless(tokens: Tensor, source: str, model: nn.Module | None) -> None:
    """Text of one token measures nothing; tokens outside the vocabulary crash."""
    if tokens.unique().numel() == 1:
        raise InputError(f"{source!r} is one token, {int(tokens[0, 0])}, repeated; give text with content")
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[union-attr,operator]
    size = getattr(embeddings, "num_embeddings", None)
    if size is not None and int(tokens.max()) >= size:
        raise InputError(
            f"token {int(tokens.max())} is outside the model's vocabulary of {size}; use the tokenizer of this model"
        )


def _rows(source: str) -> Iterator[Any] | None:
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


def _whole_text(path: Path) -> str:
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


def _texts(rows: Iterable[Any], column: str | None, source: str) -> Iterator[str]:
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


def _batches(texts: Iterable[str], size: int = 64) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
