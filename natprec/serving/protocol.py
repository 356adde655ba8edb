"""Requests and answers of the endpoint, as OpenAI's API has them; what is not understood is refused by name."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from typing import Any

from natprec.errors import InputError
from natprec.runtime.generate import Sampling

TOKENS = 256
"""New tokens where a request does not say."""

STOPS = 16


class RequestError(Exception):
    """A request that is answered with an error: its HTTP status and OpenAI's code."""

    def __init__(self, message: str, status: int = 400, code: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.code = status, code

    def body(self) -> dict[str, Any]:
        """The JSON of the answer."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": None, "code": self.code}}


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        prompts: a conversation's turns (one entry), texts, or token ids.
        echo, logprobs: of completions: give the prompt back, and so many likeliest tokens at each place.
    """

    chat: bool
    prompts: list[Any]
    max_tokens: int
    sampling: Sampling
    stream: bool = False
    usage: bool = False
    echo: bool = False
    logprobs: int | None = None


def asked_of(body: Any, chat: bool, model: str) -> Asked:
    """Read the body of a request.

    Raises:
        RequestError: names the field.
    """
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    named = body.get("model", model)
    if named != model:
        raise RequestError(f"model {named!r} is not served; there is {model!r}", 404, "model_not_found")
    for name in ("tools", "functions", "response_format", "best_of", "suffix", "logit_bias"):
        if body.get(name) not in (None, [], {}, 1, {"type": "text"}):
            raise RequestError(f"{name!r} is not supported; leave it out")
    if body.get("n") not in (None, 1):
        raise RequestError("'n' must be 1")
    stream = _typed(body, "stream", bool, False)
    logprobs = body.get("logprobs")
    if chat and logprobs:
        raise RequestError("'logprobs' is supported by /v1/completions only")
    if not (logprobs is None or logprobs is False or (type(logprobs) is int and 0 <= logprobs <= 20)):
        raise RequestError("'logprobs' must be a number from 0 to 20")
    options = _typed(body, "stream_options", dict, {})
    echo = _typed(body, "echo", bool, False)
    prompts = [_messages(body)] if chat else _prompts(body)
    if stream and (len(prompts) > 1 or logprobs or echo):
        raise RequestError("'stream' goes with one prompt, without 'echo' and 'logprobs'")
    return Asked(
        chat, prompts, _tokens(body, 0 if echo else 1), _sampling(body), stream, bool(options.get("include_usage")),
        echo, None if logprobs is None or logprobs is False else logprobs,
    )  # fmt: skip


def _typed(body: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise RequestError(f"{name!r} must be {'true or false' if kind is bool else 'an object'}")
    return value


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' must be a list of at least one message")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError("each of 'messages' needs a 'role': system, user or assistant")
        content = message.get("content")
        if isinstance(content, list):
            if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
                raise RequestError("'content' may hold parts of type 'text' only")
            content = "".join(str(part.get("text", "")) for part in content)
        if not isinstance(content, str):
            raise RequestError("each of 'messages' needs a 'content' of text")
        turns.append({"role": "system" if role == "developer" else role, "content": content})
    return turns


def _prompts(body: dict[str, Any]) -> list[Any]:
    """Texts, or lists of token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(each, str) for each in prompt):
            return prompt
        if all(type(each) is int for each in prompt):
            return [prompt]
        if all(isinstance(each, list) and each and all(type(one) is int for one in each) for each in prompt):
            return prompt
    raise RequestError("'prompt' must be a text, a list of texts, or lists of token ids")


def _tokens(body: dict[str, Any], least: int) -> int:
    value = next((body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name) is not None), TOKENS)
    if type(value) is not int or value < least:
        raise RequestError(f"'max_tokens' must be a whole number, {least} or more")
    return value


def _sampling(body: dict[str, Any]) -> Sampling:
    stop = body.get("stop")
    stops = [] if stop is None else [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(each, str) and each for each in stops) or len(stops) > STOPS:
        raise RequestError(f"'stop' must be a text or a list of at most {STOPS} texts")
    values = {}
    for name, largest in (("temperature", 2.0), ("top_p", 1.0)):
        value = body.get(name)
        if value is not None and (type(value) not in (int, float) or not 0 <= value <= largest):
            raise RequestError(f"{name!r} must be a number from 0 to {largest:g}")
        values[name] = value or (0.0 if name == "temperature" and value is not None else None)
    seed = body.get("seed")
    if seed is None:
        seed = uuid.uuid4().int % 2**32
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise RequestError("'seed' must be a whole number, 0 or more")
    made = Sampling(temperature=values["temperature"], top_p=values["top_p"], seed=seed, stop=tuple(stops))
    try:
        made.check()
    except InputError as error:
        raise RequestError(str(error)) from error
    return made


def answer(asked: Asked, model: str, choices: list[dict[str, Any]], prompt: int, completion: int) -> dict[str, Any]:
    """The body of an answer that is not streamed."""
    return {**_frame(asked, model, streamed=False), "choices": choices, "usage": usage(prompt, completion)}


def choice(asked: Asked, index: int, text: str, finished: bool, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    """One text of an answer."""
    said = {"message": {"role": "assistant", "content": text}} if asked.chat else {"text": text}
    return {"index": index, **said, "logprobs": logprobs, "finish_reason": "stop" if finished else "length"}


class Stream:
    """The chunks of a streamed answer, which share one id."""

    def __init__(self, asked: Asked, model: str) -> None:
        self._asked, self._frame = asked, _frame(asked, model, streamed=True)

    def opening(self) -> list[dict[str, Any]]:
        """What comes before the first text: of a chat the role."""
        return [self._chunk({"role": "assistant", "content": ""}, None)] if self._asked.chat else []

    def piece(self, text: str) -> dict[str, Any]:
        """A piece of text."""
        return self._chunk({"content": text} if self._asked.chat else text, None)

    def closing(self, finished: bool, prompt: int, completion: int) -> list[dict[str, Any]]:
        """Why it ended, and the counts if they were asked for."""
        end = self._chunk({} if self._asked.chat else "", "stop" if finished else "length")
        counts = {**self._frame, "choices": [], "usage": usage(prompt, completion)}
        return [end, counts] if self._asked.usage else [end]

    def _chunk(self, said: Any, reason: str | None) -> dict[str, Any]:
        name = "delta" if self._asked.chat else "text"
        return {**self._frame, "choices": [{"index": 0, name: said, "logprobs": None, "finish_reason": reason}]}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Tokens read and written."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _frame(asked: Asked, model: str, streamed: bool) -> dict[str, Any]:
    kind = ("chat.completion.chunk" if streamed else "chat.completion") if asked.chat else "text_completion"
    prefix = "chatcmpl" if asked.chat else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}
