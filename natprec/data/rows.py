"""A row of a dataset as text: a column of text, a conversation, or an instruction with its answer.

How rows are read is decided by the first one that can be read, unless a column is named; rows that lack it are left
out and counted. Conversations and instructions are written by the tokenizer's chat template, as the model will read
them; without one their contents follow each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from natprec.data.chat import RefusedError, Turn, has_template, rendered
from natprec.errors import InputError, unknown

TEXT_COLUMNS = ("text", "content", "prompt", "document", "article", "instruction", "question")
CHATS = ("messages", "conversations", "conversation")
"""Columns of conversations, as lists of {role, content} or, ShareGPT's way, of {from, value}."""

SYSTEM, ASKED = ("system", "system_prompt"), ("instruction", "prompt", "question")
GIVEN, ANSWERED = ("input", "context"), ("output", "completion", "response", "answer")
"""Columns of instruction rows; a row has one of `ASKED` and of `ANSWERED`, and maybe of the others."""

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}
"""ShareGPT's names → those of chat templates."""

LOOKED_AT = 100
"""Rows without text after which a dataset is given up."""

Reading = Callable[[dict[str, Any]], "str | list[Turn] | None"]
"""A row → its text or its turns; None: it has none."""


MANY, NAME = 20, 60
"""Columns that a message lists, and letters of each."""


def shorten(name: str, letters: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= letters else name[: letters - 1] + "…"


class Rows:
    """Reads the text of rows, and counts those that have none."""

    def __init__(self, source: str, column: str | None, tokenizer: Any) -> None:
        """`column`: the only one that is read, if it is named."""
        self._source, self._column, self._tokenizer = source, column, tokenizer
        self._reading: Reading | None = None
        self._what = ""
        self._seen: dict[str, None] = {}
        self._read = self._without = self._used = self._refused = 0
        self._cause = ""

    def texts(self, rows: Iterable[Any]) -> Iterator[str]:
        """The text of each row that has some; a blank line follows it, unless a template wrote it.

        Raises:
            InputError: none of the first rows has any.
            ModelError: the chat template exceeds its limits.
        """
        for row in rows:
            self._read += 1
            content = self._content(row) if isinstance(row, dict) else self._checked(row)
            if content is None:
                self._without += 1
            elif content != "":
                text = self._written(content)
                if text is not None:
                    self._used += 1
                    yield text
            if self._used == 0 and self._read >= LOOKED_AT and (self._reading is None or self._refused >= LOOKED_AT):
                break
        if self._used == 0:
            self._refuse()

    def left_out(self) -> str | None:
        """A sentence on rows that were left out, if there were any."""
        parts = [f"{self._without} without {self._what}"] if self._without else []
        if self._refused:
            parts.append(f"{self._refused} that the tokenizer's chat template refuses ({self._cause})")
        return f"{self._source!r}: of {self._read} rows read, {' and '.join(parts)} are left out" if parts else None

    def _content(self, row: dict[str, Any]) -> str | list[Turn] | None:
        """Text, or turns, or nothing; '' if it is blank."""
        self._seen |= dict.fromkeys(map(str, row))
        if self._reading is None:
            found = _reading(row, self._column)
            if found is None:
                return None
            self._what, self._reading = found
        content = self._checked(self._reading(row))
        return "" if isinstance(content, str) and not content.strip() else content

    def _checked(self, content: Any) -> str | list[Turn] | None:
        """What a row holds.

        Raises:
            InputError: neither text nor a conversation.
        """
        if content is None or isinstance(content, str):
            return content
        turns = _turns(content)
        if turns is None:
            column = self._what or "the row"
            raise InputError(
                f"{self._source!r}: {column} holds {type(content).__name__}, not text; name another column"
            )
        return turns or None

    def _written(self, content: str | list[Turn]) -> str | None:
        """The text; None if the template refuses these turns."""
        if isinstance(content, str):
            return content + "\n\n"
        if not has_template(self._tokenizer):
            return "\n\n".join(turn["content"] for turn in content) + "\n\n"
        for turns in (content, _without_system(content)):
            try:
                return rendered(self._tokenizer, turns)
            except RefusedError as error:
                self._cause = self._cause or error.cause
        self._refused += 1
        return None

    def _refuse(self) -> None:
        if self._refused:
            raise InputError(
                f"{self._source!r}: the tokenizer's chat template refuses each of {self._refused} conversations "
                f"({self._cause}); replace or remove the chat template, or give plain text"
            )
        columns = list(self._seen)
        if columns and self._column is not None and self._column not in columns:
            raise unknown(
                f"column of {self._source!r}:", self._column, [shorten(each, NAME) for each in columns[:MANY]]
            )
        if columns and self._reading is None and not any(name in columns for name in TEXT_COLUMNS + CHATS):
            raise InputError(f"{self._source!r} has no text column, only {_few(columns)}; name one with --text-column")
        raise InputError(f"{self._source!r} is empty: none of {self._read} rows has text; give a source with text")


def _few(columns: list[str]) -> str:
    """Names for a message, which a file may have thousands of, or of thousands of letters."""
    more = f" and {len(columns) - MANY} more" if len(columns) > MANY else ""
    return ", ".join(shorten(each, NAME) for each in columns[:MANY]) + more


def _named(column: str) -> tuple[str, Reading]:
    return f"column {column!r}", lambda row: row.get(column)


def _reading(row: dict[str, Any], column: str | None) -> tuple[str, Reading] | None:
    """How rows like this one are read, by one column if it is named, and what that is called; None: not known."""
    if column is not None:
        return _named(column) if column in row else None
    if isinstance(row.get("text"), str):
        return _named("text")
    for name in CHATS:
        if _turns(row.get(name)):
            return _named(name)
    asked, answered = _first(row, ASKED), _first(row, ANSWERED)
    if asked is not None and answered is not None:
        system, given = _first(row, SYSTEM), _first(row, GIVEN)
        return f"{asked!r} or {answered!r}", lambda other: _instruction(other, system, asked, given, answered)
    return next((_named(name) for name in TEXT_COLUMNS if row.get(name) is not None), None)


def _first(row: dict[str, Any], names: Iterable[str]) -> str | None:
    """The first column of these that holds text or turns."""
    return next((name for name in names if isinstance(row.get(name), str) or _turns(row.get(name))), None)


def _instruction(
    row: dict[str, Any], system: str | None, asked: str, given: str | None, answered: str
) -> list[Turn] | None:
    """The turns of an instruction row; None: it lacks the question or the answer."""
    question, answer = row.get(asked), row.get(answered)
    turns: list[Turn] = []
    if system is not None and row.get(system):
        turns.append({"role": "system", "content": row[system]})
    if isinstance(question, str) and given is not None and isinstance(row.get(given), str) and row[given].strip():
        question = f"{question}\n\n{row[given]}"
    for role, content in (("user", question), ("assistant", answer)):
        own = [{"role": role, "content": content}] if isinstance(content, str) and content.strip() else _turns(content)
        if not own:
            return None
        turns += own
    return turns


def _turns(value: Any) -> list[Turn] | None:
    """A conversation's turns with role and content, as templates know them; None: it is none."""
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    turns = []
    for turn in value:
        role = turn.get("role") or turn.get("from")
        if not isinstance(role, str):
            return None
        content = turn.get("content") if turn.get("content") is not None else turn.get("value")
        if isinstance(content, list):  # parts, of which some may be pictures
            content = "".join(part["text"] for part in content if isinstance(part, dict) and _is_text(part))
        others = {key: kept for key, kept in turn.items() if key not in ("from", "value") and kept is not None}
        turns.append({**others, "role": ROLES.get(role, role), "content": content if isinstance(content, str) else ""})
    return turns


def _without_system(turns: list[Turn]) -> list[Turn]:
    """The turns with what the system says before the first question, for templates that know no such role."""
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    return [{**turns[1], "content": f"{turns[0]['content']}\n\n{turns[1]['content']}"}, *turns[2:]]


def _is_text(part: dict[str, Any]) -> bool:
    return isinstance(part.get("text"), str)
