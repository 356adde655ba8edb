"""Rows as people have them: conversations, instructions, tables, compressed files, and rows that lack a column."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.data.rows import LOOKED_AT, Rows
from natprec.errors import InputError, ModelError
from tests.conftest import made_up_text
from tests.data.test_windows import load, refusal, rows_of, write_rows
from tests.models.test_chat import with_template

TEMPLATE = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.content }}]{% endfor %}"
)
EXPECTED = "<s>user\nWhy?</s>\n<s>assistant\nBecause.</s>\n"


def said(content: Any = "Why?", answer: Any = "Because.") -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]


def texts(tokenizer: Any, rows: list[Any], column: str | None = None) -> tuple[list[str], str | None]:
    """What is read of rows, and what is said of those left out."""
    reader = Rows("rows", column, tokenizer)
    return list(reader.texts(rows)), reader.left_out()


@pytest.mark.parametrize(
    "row",
    [
        {"messages": said()},
        {"prompt_id": "7", "prompt": "Why?", "messages": said()},
        {"messages": [{**turn, "tool_calls": None, "name": None} for turn in said()]},
        {"messages": said([{"type": "text", "text": "Why?"}, {"type": "image", "text": None}])},
        {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
        {"conversation": said(), "id": 1},
        {"instruction": "Why?", "input": "", "output": "Because."},
        {"instruction": "Why?", "context": None, "response": "Because.", "category": "open"},
        {"prompt": "Why?", "completion": "Because."},
        {"prompt": said()[:1], "completion": said()[1:]},
        {"question": "Why?", "answer": "Because."},
    ],
    ids=lambda row: "-".join(row),
)
def test_conversations_and_instructions_are_written_by_the_template(tiny_tokenizer: Any, row: dict[str, Any]) -> None:
    assert texts(with_template(tiny_tokenizer, TEMPLATE), [row]) == ([EXPECTED], None)
    assert texts(tiny_tokenizer, [row]) == (["Why?\n\nBecause.\n\n"], None)


def test_an_instruction_is_read_whole(tiny_tokenizer: Any) -> None:
    row = {"system_prompt": "Be brief.", "instruction": "Add.", "input": "1 2", "output": "3"}
    assert texts(tiny_tokenizer, [row])[0] == ["Be brief.\n\nAdd.\n\n1 2\n\n3\n\n"]
    written = texts(with_template(tiny_tokenizer, TEMPLATE), [row])[0]
    assert written == ["<s>system\nBe brief.</s>\n<s>user\nAdd.\n\n1 2</s>\n<s>assistant\n3</s>\n"]
    assert texts(tiny_tokenizer, [row], "instruction")[0] == ["Add.\n\n"], "a column that is named is read alone"
    assert texts(tiny_tokenizer, [{**row, "text": "all of it"}])[0] == ["all of it\n\n"]


def test_rows_without_the_column_are_left_out_and_counted(tiny_tokenizer: Any) -> None:
    rows = [{"id": 1}, {"messages": said()}, {"text": "other"}, {"messages": None}, {"messages": said()}]
    found, line = texts(tiny_tokenizer, rows)
    assert len(found) == 2
    assert line == "'rows': of 5 rows read, 3 without column 'messages' are left out"
    assert texts(tiny_tokenizer, [{"a": "x"}, {"b": "y"}], "b") == (
        ["y\n\n"],
        "'rows': of 2 rows read, 1 without column 'b' are left out",
    )
    rows = [{"question": "a", "answer": "b"}, {"question": "a"}]
    assert texts(tiny_tokenizer, rows)[1] == "'rows': of 2 rows read, 1 without 'question' or 'answer' are left out"


def test_a_source_without_text_is_given_up_soon(tiny_tokenizer: Any) -> None:
    def endless() -> Any:
        for number in range(LOOKED_AT + 1):
            assert number < LOOKED_AT, "read too far"
            yield {"id": number}

    for column, words in ((None, "no text column, only id; name one with --text-column"), ("ix", "did you mean 'id'")):
        with pytest.raises(InputError, match=words):
            list(Rows("rows", column, tiny_tokenizer).texts(endless()))
    for value in ({"a": 1}, [["a"]], ["a", "b"], 7):
        with pytest.raises(InputError, match="not text; name another column"):
            texts(tiny_tokenizer, [{"x": value}], "x")


def test_conversations_that_the_template_refuses(tiny_tokenizer: Any) -> None:
    """Others are read; what a template without system turns refuses is told by the user; none at all is an error."""
    tokenizer, twice = with_template(tiny_tokenizer, ALTERNATE), [*said()[:1], *said()]
    found, line = texts(tokenizer, [{"messages": twice}, {"messages": said()}])
    assert found == ["[Why?][Because.]"]
    assert line is not None
    assert line.endswith("1 that the tokenizer's chat template refuses (roles must alternate) are left out")
    told = [{"role": "system", "content": "Be brief."}, *said()]
    assert texts(tokenizer, [{"messages": told}]) == (["[Be brief.\n\nWhy?][Because.]"], None)
    with pytest.raises(InputError, match=r"refuses each of 100 conversations \(roles must alternate\); replace"):
        texts(tokenizer, [{"messages": twice}] * 1000)
    with pytest.raises(ModelError, match="100000000 characters"):
        texts(with_template(tiny_tokenizer, "{{ 'a' * 10**8 }}"), [{"messages": said()}] * 1000)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz"])
def test_conversations_become_windows_from_every_kind_of_file(tiny_tokenizer: Any, tmp_path: Path, suffix: str) -> None:
    rows = [{"messages": said(row["text"], "yes")} for row in rows_of(20)]
    file = write_rows(tmp_path / ("rows" + suffix.removesuffix(".gz")), rows)
    if suffix.endswith(".gz"):
        packed = tmp_path / "packed"
        packed.mkdir()
        (packed / f"rows{suffix}").write_bytes(gzip.compress(file.read_bytes()))
        file = packed / f"rows{suffix}"
    lines: list[str] = []
    tokenizer = with_template(tiny_tokenizer, TEMPLATE)
    found = load(tokenizer, file, note=lines.append)
    text = "".join(f"<s>user\n{row['text']}</s>\n<s>assistant\nyes</s>\n" for row in rows_of(20))
    ids = tiny_tokenizer(text)["input_ids"]
    assert found[0].tolist() in [ids[i : i + 32] for i in range(0, len(ids), 32)]
    assert (found == 0).any(), "special tokens are tokens"
    assert lines == []


@pytest.mark.parametrize(("suffix", "delimiter"), [(".csv", ","), (".csv", ";"), (".tsv", "\t"), (".csv.gz", ",")])
def test_tables(tiny_tokenizer: Any, tmp_path: Path, suffix: str, delimiter: str) -> None:
    expected = load(tiny_tokenizer, write_rows(tmp_path / "a.jsonl", rows_of(20)))
    file = tmp_path / f"a{suffix}"
    with (gzip.open if suffix.endswith(".gz") else open)(file, "wt", newline="") as opened:  # type: ignore[operator]
        table = csv.DictWriter(opened, ["id", "text"], delimiter=delimiter)
        table.writeheader()
        table.writerows(rows_of(20))
    assert torch.equal(load(tiny_tokenizer, file), expected)
    refusal(tiny_tokenizer, file, "did you mean 'text'", text_column="texd")
    long = tmp_path / "long.csv"
    long.write_text('text\n"' + made_up_text(40_000) + '"\n')
    assert load(tiny_tokenizer, long).shape == (8, 32)


def test_compressed_text(tiny_tokenizer: Any, text_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt.gz"
    content = gzip.compress(text_file.read_bytes())
    file.write_bytes(content)
    assert torch.equal(load(tiny_tokenizer, file), load(tiny_tokenizer, text_file))
    file.write_bytes(content[:2000])
    refusal(tiny_tokenizer, file, str(file), "gzip, cut off or damaged")
    file.write_bytes(content[:100] + b"\0" * 200 + content[300:])
    refusal(tiny_tokenizer, file, str(file), "gzip, cut off or damaged")
    for name in ("a.jsonl.zst", "a.zip", "a.txt.xz", "a.parquet.gz"):
        (tmp_path / name).write_bytes(b"x")
        refusal(tiny_tokenizer, tmp_path / name, name, "unpack it first")
    refusal(tiny_tokenizer, "missing.jsonl.gz", "does not exist")


def test_what_expands_without_end_is_cut(tiny_tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("natprec.data.sources.TEXT_LIMIT", 10_000)
    for name, content, words in (
        ("a.txt.gz", b"a b\n" * 5000, "too many to be taken whole"),
        ("a.txt.gz", b"a" * 20_000, "line of 10000"),
        ("a.jsonl.gz", b'{"text": "' + b"a" * 20_000, "line of 10000"),
    ):
        (tmp_path / name).write_bytes(gzip.compress(content))
        refusal(tiny_tokenizer, tmp_path / name, words)


def test_deeply_nested_json(tiny_tokenizer: Any, tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        (tmp_path / name).write_text("[" * 200_000)
        refusal(tiny_tokenizer, tmp_path / name, "is not JSON")


def test_the_user_is_told_of_rows_left_out(tiny_tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"id": 1}, *({"messages": said(row["text"])} for row in rows_of(20))]
    lines: list[str] = []
    load(tiny_tokenizer, write_rows(tmp_path / "a.jsonl", rows), note=lines.append)
    assert len(lines) == 1
    assert "1 without column 'messages' are left out" in lines[0]
