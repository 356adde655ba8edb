"""Token windows to measure and verify on: from a file, a hub dataset, or written by the model itself.

Every source becomes windows of equal length without padding. If calibration and held-out text come
from one source they get different windows of it, whatever the number asked for. Given the same
source, counts and seed the tokens are the same on every run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from natprec.data.rows import Rows
from natprec.data.seen import NO_PIECES, Pieces, unseen
from natprec.data.sources import source_rows, whole_text
from natprec.errors import InputError, ModelError, NatprecError
from natprec.models.devices import quiet
from natprec.tasks.vision_language import not_text
from natprec.utils.memory import give_back
from natprec.utils.seeds import check_seed
from natprec.utils.system_faults import told

Split = Literal["calibration", "held-out"]
Progress = Callable[[int, int], None]
"""Told (tokens done, tokens in all)."""

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
    writes: bool = True,
    seed: int = 0,
    text_column: str | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] = lambda line: None,
    seen: Pieces = NO_PIECES,
    least: int | None = None,
) -> Tensor:
    """Windows of tokens, each beginning with bos where the tokenizer normally puts it, or between cls and sep.

    A text file is tokenized whole and its windows are spread evenly over it; if shared, calibration
    takes from its first 80 % and held-out from the rest. Rows of a dataset are read until there are
    several windows to choose from; if shared, every fifth window is held out.

    Args:
        tokenizer: of transformers.
        source: a .jsonl, .json, .csv, .tsv, .parquet or text file, a hub dataset as `id[:config[:split]]`, or None:
            the model writes the text, with a seed of its own for each split.
        sequences: number of windows.
        length: tokens in each, bos included.
        split: which of the two disjoint parts.
        shared: whether both parts come out of this source.
        model: writes the text without a source; with one, tokens are checked against its vocabulary.
        writes: whether the model can write text; encoders cannot.
        seed: for written text only.
        text_column: by default what the rows have: text, conversations or instructions, see `natprec.data.rows`.
        progress: called while text is streamed or written.
        note: gets a line on rows that were left out.
        seen: of what was measured on; windows with a piece of it are left out.
        least: windows that are enough where there are fewer than `sequences`; default: none fewer.
    Returns:
        (sequences, length), int64, on the CPU; fewer sequences, but `least`, where the text has no more.
    Raises:
        InputError: nothing to read, not enough of it, or not text.
        ModelError: the model's own predictions cannot be sampled.
    """
    seed, (before, after) = check_seed(seed), _frame(tokenizer)
    if sequences < 1 or length < 2:
        raise InputError(f"{sequences} sequences of {length} tokens are no data; ask for at least 1 of at least 2")
    if source is None:
        if model is None or not writes:
            writer = "no model to write it" if model is None else "an encoder cannot write it"
            raise InputError(f"no text, and {writer}; name a file or hub dataset with --data")
        tokens = generate_tokens(model, tokenizer, sequences, length, 2 * seed + (split == "held-out"), progress)
        source = "the model's own text"
    else:
        body = length - len(before) - len(after)
        if body < 1:
            raise InputError(f"{length} tokens leave no room for text between cls and sep; ask for 3 or more")
        windows, candidates = _windows(tokenizer, source, sequences, body, split, shared, text_column, progress, note)
        give_back()  # what the tokenizer noted of each token: 190 MB for a megabyte of text in tokens of one byte
        found, candidates = len(candidates), unseen(windows, candidates, seen)
        wanted, sequences = sequences, least or sequences
        part = f"the {split} part of {source!r}" if shared else repr(source)
        if len(candidates) < sequences <= found:
            raise InputError(
                f"{found - len(candidates)} of {found} windows in {part} repeat text that was measured on, and "
                f"{sequences} are needed; judge on another text with --eval-data"
            )
        if len(candidates) < sequences:
            raise InputError(
                f"{part} is too short: {len(candidates) * length} tokens in whole windows of {length} found, "
                f"{sequences * length} needed; lower --tokens or give more text"
            )
        sequences = min(wanted, len(candidates))
        spread = [candidates[(2 * i + 1) * len(candidates) // (2 * sequences)] for i in range(sequences)]
        framing = [torch.tensor(ids, dtype=torch.int64).expand(sequences, -1) for ids in (before, after)]
        tokens = torch.cat([framing[0], windows[spread], framing[1]], dim=1)
    _refuse_useless(tokens[:, len(before) : tokens.shape[1] - len(after)], source, model)
    return tokens


def generate_tokens(
    model: nn.Module,
    tokenizer: Any,
    sequences: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
    together: int = GENERATE_BATCH,
) -> Tensor:
    """Text that the model itself writes, at temperature 1 from its whole distribution.

    Sequences begin with bos, or with a random token where the tokenizer has none, and go on past eos.
    All random numbers come from one CPU generator; torch's global state is not touched.

    Args:
        together: sequences that are written at once; other numbers give other text.
    Returns:
        (sequences, length), int64, on the CPU.
    Raises:
        ModelError: the model's probabilities are not numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    unwritten = not_text(getattr(model, "config", None))
    done = []
    with torch.no_grad():
        for start in range(0, sequences, together):
            rows = min(together, sequences - start)
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
                logits = output.logits[:, -1].float()
                if unwritten:
                    logits[:, unwritten] = -torch.inf
                chances = logits.softmax(dim=-1).cpu()
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


def continues(model: nn.Module, tokenizer: Any) -> bool:
    """Whether a model can write: the code of some (CPM-Ant) fails where it is given a token and what it kept before."""
    try:
        generate_tokens(model, tokenizer, 1, 4, 0)
    except NatprecError:
        return True  # of its numbers, which whoever wants its text is told
    except Exception as error:  # whatever a model's own code raises
        if told(error) is not None:
            raise
        return False
    return True


def _windows(
    tokenizer: Any,
    source: str,
    sequences: int,
    body: int,
    split: Split,
    shared: bool,
    text_column: str | None,
    progress: Progress | None,
    note: Callable[[str], None],
) -> tuple[Tensor, list[int]]:
    """All windows, (n, body), and the numbers of those that the split may use."""
    rows = source_rows(source)
    if rows is None:
        ids = _encode(tokenizer, [whole_text(Path(source).expanduser())])
        count = len(ids) // body
        cut = count * (HELD_OUT - 1) // HELD_OUT
        part = range(count) if not shared else range(cut) if split == "calibration" else range(cut, count)
        return torch.tensor(ids[: count * body]).view(-1, body), list(part)
    share = HELD_OUT if shared else 1
    wanted = POOL * sequences * share * body
    ids = []
    reading = Rows(source, text_column, tokenizer)
    for batch in _batches(reading.texts(rows)):
        ids += _encode(tokenizer, batch)
        if progress is not None:
            progress(min(len(ids), wanted), wanted)
        if len(ids) >= wanted:
            break
    left_out = reading.left_out()
    if left_out is not None:
        note(left_out)
    count = min(len(ids), wanted) // body
    chosen = [i for i in range(count) if not shared or (i % HELD_OUT == HELD_OUT - 1) == (split == "held-out")]
    return torch.tensor(ids[: count * body], dtype=torch.int64).view(-1, body), chosen


def _encode(tokenizer: Any, texts: list[str]) -> list[int]:
    """The tokens of all texts in one list, without special ones. Their length is no mistake: be quiet."""
    with quiet():
        encoded = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    return [token for ids in encoded for token in ids]


def _frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after text: [bos] and nothing, or an encoder's [cls] and [sep]."""
    framed = tokenizer("x")["input_ids"]
    before = [token for token in framed[:1] if token in (tokenizer.bos_token_id, tokenizer.cls_token_id)]
    return before, [token for token in framed[-1:] if token == tokenizer.sep_token_id]


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


def _batches(texts: Iterable[str], size: int = 64) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
