"""The endpoint: /v1/models, /v1/chat/completions, /v1/completions and /health; no other path leads anywhere."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from natprec.errors import NatprecError
from natprec.runtime.load import Runnable
from natprec.serving.protocol import Asked, RequestError, Stream, answer, asked_of, choice
from natprec.serving.worker import completed, scored
from natprec.utils.json_text import from_json

LARGEST = 16 << 20
"""Bytes of a request."""


class Endpoint:
    """Serves one checkpoint under a name; the model runs on one thread, in the order of the requests."""

    def __init__(self, runnable: Runnable, name: str) -> None:
        self._runnable, self._name = runnable, name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="natprec-model")

    def app(self) -> Starlette:
        """The application, for an ASGI server."""
        return Starlette(
            routes=[
                Route("/v1/models", self._models),
                Route("/v1/models/{name:path}", self._model),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
                Route("/v1/completions", self._complete, methods=["POST"]),
                Route("/health", self._health),
            ],
            exception_handlers={RequestError: _refused, HTTPException: _no_such_path, NatprecError: _failed},
        )

    def _described(self) -> dict[str, Any]:
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "natprec"}

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def _model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._name:
            raise RequestError(f"model {name!r} is not served; there is {self._name!r}", 404, "model_not_found")
        return JSONResponse(self._described())

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _chat(self, request: Request) -> Response:
        return await self._respond(request, chat=True)

    async def _complete(self, request: Request) -> Response:
        return await self._respond(request, chat=False)

    async def _respond(self, request: Request, chat: bool) -> Response:
        asked = asked_of(await _body(request), chat, self._name)
        if asked.stream:
            return await self._streamed(asked)
        gone = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._whole, asked, gone)
        try:
            return JSONResponse(await work)
        except asyncio.CancelledError:
            gone.set()
            raise

    def _whole(self, asked: Asked, gone: threading.Event) -> dict[str, Any]:
        """Runs on the model's thread."""
        choices, read, wrote = [], 0, 0
        for index, prompt in enumerate(asked.prompts):
            found, ids = completed(self._runnable, asked, prompt, lambda _: None, gone.is_set)
            tokens = [*ids, *found.tokens]
            logprobs = None
            if asked.logprobs is not None:
                logprobs = scored(self._runnable, tokens, 0 if asked.echo else len(ids), asked.logprobs)
            before = self._runnable.tokenizer.decode(ids, skip_special_tokens=True) if asked.echo else ""
            choices.append(choice(asked, index, before + found.text, found.finished, logprobs))
            read, wrote = read + len(ids), wrote + len(found.tokens)
        return answer(asked, self._name, choices, read, wrote)

    async def _streamed(self, asked: Asked) -> Response:
        """Pieces as they are written. What is wrong with a request is answered before the stream begins."""
        loop, pieces, gone = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()

        def put(what: Any) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, what)

        def run() -> None:
            try:
                if not gone.is_set():
                    found, ids = completed(self._runnable, asked, asked.prompts[0], put, gone.is_set)
                    put((found.finished, len(ids), len(found.tokens)))
            except Exception as error:  # told to the client
                put(error)

        self._thread.submit(run)
        try:
            first = await pieces.get()
        except asyncio.CancelledError:
            gone.set()
            raise
        if isinstance(first, Exception):
            raise first
        return StreamingResponse(_events(asked, self._name, first, pieces, gone.set), media_type="text/event-stream")


async def _events(
    asked: Asked, name: str, first: Any, pieces: asyncio.Queue[Any], gone: Callable[[], None]
) -> AsyncIterator[str]:
    stream, what = Stream(asked, name), first
    try:
        for chunk in stream.opening():
            yield _event(chunk)
        while isinstance(what, str):
            yield _event(stream.piece(what))
            what = await pieces.get()
        if isinstance(what, Exception):
            error = what if isinstance(what, RequestError) else RequestError(str(what), 500, "server_error")
            yield _event(error.body())
        else:
            for chunk in stream.closing(*what):
                yield _event(chunk)
        yield "data: [DONE]\n\n"
    finally:
        gone()  # the client may have closed the stream: the model stops at its next token


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


async def _body(request: Request) -> Any:
    """The JSON of a request.

    Raises:
        RequestError: it is none, too large, or not said to be JSON (a web page may send anything else unasked).
    """
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RequestError("the content-type must be application/json", 415)
    content = b""
    async for part in request.stream():
        content += part
        if len(content) > LARGEST:
            raise RequestError(f"the body is larger than {LARGEST} bytes", 413)
    try:
        return from_json(content)
    except ValueError as error:
        raise RequestError(f"the body is not JSON ({error})") from error


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return JSONResponse(error.body(), error.status)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(RequestError(str(error), 500, "server_error").body(), 500)


async def _no_such_path(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(RequestError(error.detail, error.status_code, "not_found").body(), error.status_code)
