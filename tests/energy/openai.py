"""A stand-in for an OpenAI-compatible server: streams made-up tokens at a known rate, or fails as it is told to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    settings: dict[str, Any]

    def log_message(self, *args: Any) -> None:
        """Nothing."""

    def _json(self, status: int, value: Any) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def do_GET(self) -> None:
        models = [] if self.settings.get("no_models") else [{"id": "served"}]
        self._json(200 if self.path == "/v1/models" else 404, {"data": models})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kept = self.settings
        kept.setdefault("asked", []).append(asked)
        failing = len(kept["asked"]) > kept.get("fails_after", 1 << 60)
        if kept.get("status") or failing:
            return self._json(kept.get("status", 500), {"error": {"message": "out of memory"}})
        if kept.get("strict") and "ignore_eos" in asked:
            return self._json(400, {"error": {"message": "unknown field ignore_eos"}})
        self.send_response(200)
        self.end_headers()
        each = kept.get("tokens_per_chunk", 1)
        with contextlib.suppress(OSError):
            for _ in range(max(1, asked["max_tokens"] // each)):
                time.sleep(kept.get("seconds", 0.002))
                self._event({"choices": [{"text": "word ", "finish_reason": None}]})
            if kept.get("error_inside"):
                self._event({"error": {"message": "gave up"}})
            self._event({"choices": [{"text": "", "finish_reason": "length"}]})
            if not kept.get("no_usage"):
                count = {"completion_tokens": asked["max_tokens"], "prompt_tokens": 2 * len(asked["prompt"].split())}
                self._event({"choices": [], "usage": count})
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")
        self.wfile.flush()


@contextlib.contextmanager
def serving(**settings: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The address, and the settings, to which the requests are added as `asked`."""
    handler = type("Set", (Handler,), {"settings": settings})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", settings
    finally:
        server.shutdown()
        server.server_close()
