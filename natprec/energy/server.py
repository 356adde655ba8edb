"""An OpenAI-compatible server as a client sees it: which model, and one streamed completion with its usage counts."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from natprec.energy.recorder import Clock
from natprec.errors import InputError
from natprec.utils.json_text import from_json

SECONDS = 600.0
"""That an answer may take."""

WORDS = ("time", "water", "house", "light", "river", "people", "number", "world", "paper", "garden", "winter", "city")


class ServerFault(Exception):
    """A request that failed, in a sender's thread."""


@dataclass(frozen=True)
class Answer:
    """One finished request.

    Attributes:
        moments: when each chunk came, unix seconds of the run's clock; `tokens`: that the server says it wrote.
    """

    moments: tuple[float, ...]
    tokens: int
    prompt_tokens: int


@dataclass
class Server:
    """An OpenAI-compatible server.

    Attributes:
        url: for example http://127.0.0.1:8000, with or without /v1.
        model: the first that it lists.
        numbers: of requests, from the time on: no server has answered a request of that number.
        more: fields of a request beyond the standard's, where the server takes them.
    """

    url: str
    clock: Clock
    model: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(time.time_ns() // 1_000_000))
    more: dict[str, Any] = field(default_factory=lambda: {"ignore_eos": True})

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url if "//" in self.url else f"http://{self.url}")
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in ("http", "https") or not re.fullmatch(r"[!-~]+", self.url):
            raise InputError(f"endpoint {self.url!r} is no address; give, for example, http://127.0.0.1:8000")
        self._secure, self._host, self._port = parts.scheme == "https", host, port
        self._path = parts.path.rstrip("/").removesuffix("/v1")

    def open(self) -> Server:
        """Ask which model it serves, and try one short request.

        Raises:
            InputError: it does not answer, answers with an error, or gives no usage counts.
        """
        listed = self._read_json("GET", "/v1/models")
        try:
            self.model = self.model or listed["data"][0]["id"]
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"endpoint {self.url!r} lists no model at /v1/models; is it an OpenAI server?") from error
        try:
            self.ask("Hello", 2)
        except ServerFault as error:
            if not self.more or not str(error).startswith("it answers 4"):
                raise InputError(f"endpoint {self.url!r}: {error}") from error
            self.more = {}
            try:
                self.ask("Hello", 2)
            except ServerFault as again:
                raise InputError(f"endpoint {self.url!r}: {again}") from again
        return self

    def ask(self, prompt: str, tokens: int, stop: Callable[[], bool] = lambda: False,
            on_chunk: Callable[[float], None] = lambda moment: None) -> Answer | None:  # fmt: skip
        """One streamed completion; None: `stop` became true first.

        Raises:
            ServerFault: an error instead of an answer, or one without usage counts.
        """
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, **self.more,
        }  # fmt: skip
        moments, usage = [], None
        connection = self._connection()
        try:
            connection.request("POST", f"{self._path}/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})  # fmt: skip
            response = connection.getresponse()
            if response.status != 200:
                raise ServerFault(f"it answers {response.status}: {_said(response.read(2000))}")
            for event in _events(response):
                if "error" in event:
                    raise ServerFault(f"it answers with an error: {_said(json.dumps(event['error']).encode())}")
                usage = event.get("usage") or usage
                if any(
                    choice.get("text") or choice.get("finish_reason") is None for choice in event.get("choices", ())
                ):
                    moments.append(self.clock.now())
                    on_chunk(moments[-1])
                if stop():
                    return None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ServerFault(f"it cannot be read ({error or type(error).__name__})") from error
        finally:
            connection.close()
        try:
            written, read = int(usage["completion_tokens"]), int(usage["prompt_tokens"])  # type: ignore[index]
        except (TypeError, KeyError, ValueError) as error:
            raise ServerFault("its answer has no usage counts (completion_tokens, prompt_tokens)") from error
        if written < 1 or read < 1 or not moments:
            raise ServerFault(f"it says that it read {read} tokens and wrote {written}")
        return Answer(tuple(moments), written, read)

    def words_for(self, tokens: int) -> int:
        """Words of a prompt that has about so many tokens.

        Raises:
            InputError: the server fails.
        """
        try:
            words = max(1, tokens)
            answer = self.ask(made_up_prompt(next(self.numbers), words), 1)
            assert answer is not None
            return max(1, round(words * tokens / answer.prompt_tokens))
        except ServerFault as error:
            raise InputError(f"endpoint {self.url!r}: {error}") from error

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=SECONDS)

    def _read_json(self, method: str, path: str) -> Any:
        connection = self._connection()
        try:
            connection.request(method, self._path + path)
            response = connection.getresponse()
            content = response.read(1_000_000)
            if response.status != 200:
                raise InputError(f"endpoint {self.url!r} answers {response.status} at {path}: {_said(content)}")
            return from_json(content)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise InputError(
                f"endpoint {self.url!r} cannot be read ({error}); start the server on this host, or check the address"
            ) from error
        finally:
            connection.close()


def made_up_prompt(number: int, words: int) -> str:
    """Words that no other request begins with, so that no server has the prompt's cache already."""
    draw = random.Random(number)
    return " ".join([str(number), *(draw.choice(WORDS) for _ in range(max(0, words - 1)))])


def _events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The objects of a stream of server-sent events."""
    for line in response:
        data = line.strip()
        if data.startswith(b"data:") and (content := data[5:].strip()) != b"[DONE]":
            event = from_json(content)
            if not isinstance(event, dict):
                raise ValueError(f"an event is {event!r:.60}")
            yield event


def _said(content: bytes) -> str:
    return " ".join(content.decode("utf-8", "replace").split())[:200]
