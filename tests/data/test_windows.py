"""Token windows: disjoint parts, the same on every run, and each unusable source named."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.data.windows import continues, generate_tokens, load_tokens
from natprec.errors import InputError, ModelError
from tests.conftest import VOCABULARY, made_up_text, tiny_model

LENGTH = 32
Rows = list[dict[str, Any]]


def load(tokenizer: Any, source: str | Path | None, sequences: int = 8, **options: Any) -> torch.Tensor:
    arguments = {"length": LENGTH, "split": "calibration", **options}
    return load_tokens(tokenizer, None if source is None else str(source), sequences=sequences, **arguments)


def refusal(tokenizer: Any, source: str | Path | None, *words: str, **options: Any) -> None:
    """Loading fails with an InputError whose one line contains all the words."""
    with pytest.raises(InputError) as caught:
        load(tokenizer, source, **options)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def rows_of(texts: int, column: str = "text") -> Rows:
    return [{"id": i, column: made_up_text(60, seed=i)} for i in range(texts)]


def write_rows(path: Path, rows: Rows) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def windows(tokens: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(row) for row in tokens.tolist()}


def with_bos(tokenizer: Any) -> Any:
    """The same tokenizer, putting bos before text."""
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    backend = type(tokenizer.backend_tokenizer).from_str(tokenizer.backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def test_text_windows_are_consecutive_pieces_of_the_file(tiny_tokenizer: Any, text_file: Path) -> None:
    ids = tiny_tokenizer(text_file.read_text())["input_ids"]
    pieces = [tuple(ids[i : i + LENGTH]) for i in range(0, len(ids) - LENGTH + 1, LENGTH)]
    tokens = load(tiny_tokenizer, text_file, 10)
    assert tokens.shape == (10, LENGTH)
    assert tokens.dtype == torch.int64
    places = [pieces.index(tuple(row)) for row in tokens.tolist()]
    assert places == sorted(places)
    steps = [later - earlier for earlier, later in itertools.pairwise(places)]
    assert max(steps) - min(steps) <= 1  # spread evenly
    assert places[0] < len(pieces) / 10
    assert places[-1] >= len(pieces) * 9 / 10


def test_shared_text_is_cut_at_80_percent(tiny_tokenizer: Any, text_file: Path) -> None:
    ids = tiny_tokenizer(text_file.read_text())["input_ids"]
    count = len(ids) // LENGTH
    pieces = {tuple(ids[i * LENGTH : (i + 1) * LENGTH]): i for i in range(count)}
    calibration = load(tiny_tokenizer, text_file, 40, shared=True)
    held_out = load(tiny_tokenizer, text_file, 25, shared=True, split="held-out")
    assert max(pieces[window] for window in windows(calibration)) < 0.8 * count
    assert min(pieces[window] for window in windows(held_out)) >= 0.8 * count - 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
def test_shared_rows_give_disjoint_windows_whatever_the_numbers(
    tiny_tokenizer: Any, tmp_path: Path, suffix: str
) -> None:
    source = write_rows(tmp_path / f"rows{suffix}", rows_of(80))
    calibration = set().union(*(windows(load(tiny_tokenizer, source, n, shared=True)) for n in (1, 5, 30)))
    held_out = set().union(
        *(windows(load(tiny_tokenizer, source, n, shared=True, split="held-out")) for n in (1, 5, 20))
    )
    assert len(calibration) >= 30
    assert not calibration & held_out


def test_stream_is_read_no_further_than_needed(tiny_tokenizer: Any, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "rows.jsonl", rows_of(200))
    with source.open("a") as file:
        file.write("not json\n")
    assert load(tiny_tokenizer, source, 2).shape == (2, LENGTH)
    refusal(tiny_tokenizer, source, "line 201", "not JSON", sequences=1000)


def test_same_request_same_tokens(tiny_tokenizer: Any, text_file: Path) -> None:
    first, second = load(tiny_tokenizer, text_file), load(tiny_tokenizer, text_file)
    assert torch.equal(first, second)


def test_bos_begins_each_window_where_the_tokenizer_puts_it(tiny_tokenizer: Any, text_file: Path) -> None:
    tokens = load(with_bos(tiny_tokenizer), text_file)
    assert tokens.shape == (8, LENGTH)
    assert (tokens[:, 0] == 0).all()
    assert (tokens[:, 1:] != 0).all()
    assert (load(tiny_tokenizer, text_file)[:, 0] != 0).all()


def test_columns(tiny_tokenizer: Any, tmp_path: Path) -> None:
    expected = load(tiny_tokenizer, write_rows(tmp_path / "a.jsonl", rows_of(20)))
    for column in ("content", "prompt"):
        assert torch.equal(load(tiny_tokenizer, write_rows(tmp_path / "b.jsonl", rows_of(20, column))), expected)
    odd = write_rows(tmp_path / "c.jsonl", rows_of(20, "body"))
    assert torch.equal(load(tiny_tokenizer, odd, text_column="body"), expected)
    refusal(tiny_tokenizer, odd, str(odd), "no text column", "id, body", "--text-column")
    refusal(tiny_tokenizer, odd, "'bodi'", "did you mean 'body'", text_column="bodi")
    refusal(tiny_tokenizer, odd, "'id'", "int, not text", "another column", text_column="id")


def test_rows_without_text_are_skipped(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = rows_of(20)
    holes = [*rows[:3], {"id": 0, "text": None}, {"id": 0, "text": "  "}, *rows[3:]]
    assert torch.equal(
        load(tiny_tokenizer, write_rows(tmp_path / "a.jsonl", holes)),
        load(tiny_tokenizer, write_rows(tmp_path / "b.jsonl", rows)),
    )


def test_unusable_text(tiny_tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    for content, words in [
        (b"", ["is empty", "give a file with text"]),
        (b" \n\n ", ["is empty"]),
        (b"caf\xe9 " * 1000, ["not UTF-8", "0xe9", "iconv"]),
        (made_up_text(20).encode(), ["too short", "256 needed", "lower --tokens"]),
        (b"a" * 20000, ["repeated", "give text with content"]),
    ]:
        file.write_bytes(content)
        refusal(tiny_tokenizer, file, str(file), *words)


def test_too_short_counts_the_tokens_of_the_part(tiny_tokenizer: Any, text_file: Path) -> None:
    count = len(tiny_tokenizer(text_file.read_text())["input_ids"]) // LENGTH
    found = (count - count * 4 // 5) * LENGTH
    words = ["held-out part", str(text_file), f"{found} tokens", f"{count * LENGTH} needed", "more text"]
    refusal(tiny_tokenizer, text_file, *words, sequences=count, shared=True, split="held-out")
    assert load(tiny_tokenizer, text_file, count).shape == (count, LENGTH)


def test_unusable_files(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("missing.txt", "missing.parquet", "./missing", "/no/such/file"):
        refusal(tiny_tokenizer, name, repr(name), "does not exist", "check the path")
    refusal(tiny_tokenizer, tmp_path, str(tmp_path), "folder", "name one file")
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "fine"}\n\n{"text": \n')
    refusal(tiny_tokenizer, lines, str(lines), "line 3", "not JSON", "repair")
    lines.write_text('{"text": null}\n')
    refusal(tiny_tokenizer, lines, str(lines), "is empty", "give a source with text")
    value = tmp_path / "a.json"
    value.write_text('{"text": "one"}')
    refusal(tiny_tokenizer, value, str(value), "one dict", "list of objects")
    value.write_text('{"a": 1}\n{"a": 2}\n')
    refusal(tiny_tokenizer, value, str(value), "not JSON", ".jsonl")


def test_unusable_parquet(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_rows(tmp_path / "a.parquet", rows_of(20))
    content = file.read_bytes()
    for broken in (b"", b"PAR1", content[: len(content) // 2]):
        file.write_bytes(broken)
        refusal(tiny_tokenizer, file, str(file), "not a readable parquet file", "download it again")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refusal(tiny_tokenizer, file, str(file), "pip install datasets pyarrow")


def test_hub_dataset(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    asked = []

    def fake(name: str, config: str | None, *, split: str, streaming: bool) -> Rows:
        asked.append((name, config, split, streaming))
        return rows_of(20)

    monkeypatch.setattr(datasets, "load_dataset", fake)
    expected = load(tiny_tokenizer, write_rows(tmp_path / "a.jsonl", rows_of(20)))
    for source in ("some/set", "some/set:plain", "some/set:plain:test", "some/set::test"):
        assert torch.equal(load(tiny_tokenizer, source), expected)
    assert asked == [
        ("some/set", None, "train", True),
        ("some/set", "plain", "train", True),
        ("some/set", "plain", "test", True),
        ("some/set", None, "test", True),
    ]

    def unreachable(*_: Any, **__: Any) -> Rows:
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    refusal(tiny_tokenizer, "some/set", "'some/set'", "no route", "check the spelling", "connection")
    monkeypatch.setitem(sys.modules, "datasets", None)
    refusal(tiny_tokenizer, "some/set", "'some/set'", "pip install datasets pyarrow")


def test_own_text_is_seeded_and_leaves_the_global_state_alone(tiny_tokenizer: Any) -> None:
    model = tiny_model()
    before = torch.get_rng_state()
    told = []
    first = load(tiny_tokenizer, None, 20, model=model, seed=3, progress=lambda *counts: told.append(counts))
    torch.rand(5)
    assert torch.equal(first, load(tiny_tokenizer, None, 20, model=model, seed=3))
    torch.set_rng_state(before)
    load(tiny_tokenizer, None, 20, model=model)
    assert torch.equal(torch.get_rng_state(), before)
    assert first.shape == (20, LENGTH)
    assert (first[:, 0] == 0).all()
    assert told == sorted(told)
    assert told[-1] == (20 * LENGTH, 20 * LENGTH)
    assert not torch.equal(first, load(tiny_tokenizer, None, 20, model=model, seed=4))
    held_out = load(tiny_tokenizer, None, 20, model=model, seed=3, split="held-out")
    assert not windows(first) & windows(held_out)


def test_own_text_follows_the_model(tiny_tokenizer: Any) -> None:
    """A sharpened model is nearly certain, so that each token must be its own best guess of the text before it."""
    model = tiny_model()
    with torch.no_grad():
        model.model.norm.weight.fill_(300)
        tokens = generate_tokens(model, tiny_tokenizer, 4, LENGTH, seed=0)
        chances = model(tokens).logits.softmax(-1)[:, :-1]
    assert chances.gather(-1, tokens[:, 1:, None]).mean() > 0.9
    assert chances.gather(-1, tokens[:, 1:, None].roll(1, 0)).mean() < 0.5 or len(tokens.unique(dim=0)) == 1


def test_own_text_without_a_cache_is_the_same(tiny_tokenizer: Any) -> None:
    model = tiny_model()
    cached = generate_tokens(model, tiny_tokenizer, 4, 16, seed=0)
    forward = model.forward

    def forgetful(**arguments: Any) -> Any:
        assert "past_key_values" not in arguments
        output = forward(**arguments)
        output.past_key_values = None
        return output

    model.forward = forgetful
    assert torch.equal(generate_tokens(model, tiny_tokenizer, 4, 16, seed=0), cached)


def test_own_text_without_bos_begins_differently(tiny_tokenizer: Any) -> None:
    class Without:
        bos_token_id = None

        def __len__(self) -> int:
            return VOCABULARY

    tokens = generate_tokens(tiny_model(), Without(), 16, 4, seed=0)
    assert tokens[:, 0].unique().numel() > 8


def test_impossible_requests(tiny_tokenizer: Any, text_file: Path) -> None:
    refusal(tiny_tokenizer, None, "no model to write it", "--data")
    refusal(tiny_tokenizer, text_file, "0 sequences", "at least 1", sequences=0)
    refusal(tiny_tokenizer, text_file, "1 tokens", "at least 2", length=1)
    small = tiny_model(vocab_size=64)
    refusal(tiny_tokenizer, text_file, "vocabulary of 64", "tokenizer of this model", model=small)
    broken = tiny_model()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match=r"NaN.*--data"):
        load(tiny_tokenizer, None, model=broken)


@pytest.mark.parametrize("error", [IndexError("of a family's own code"), MemoryError()], ids=["its code", "memory"])
def test_a_model_that_cannot_write_is_no_machine_without_memory(tiny_tokenizer: Any, error: Exception) -> None:
    model = tiny_model()
    assert continues(model, tiny_tokenizer)

    def fails(*_: Any, **__: Any) -> Any:
        raise error

    model.forward = fails
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            continues(model, tiny_tokenizer)
    else:
        assert not continues(model, tiny_tokenizer)
