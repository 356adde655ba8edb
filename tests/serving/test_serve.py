"""The endpoint, asked over a socket: by OpenAI's client, by many at once, and with requests that are none."""

from __future__ import annotations

import concurrent.futures
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn", reason="needs natprec[serve]")

from natprec.commands.serve import _bound  # noqa: E402
from natprec.errors import InputError  # noqa: E402
from natprec.formats import integer  # noqa: E402
from natprec.runtime.generate import generate, prompt_ids  # noqa: E402
from natprec.runtime.load import Runnable, load  # noqa: E402
from natprec.serving.app import Endpoint  # noqa: E402
from tests.arrange import encoder, subject  # noqa: E402
from tests.run_command import natprec  # noqa: E402
from tests.runtime.test_load import written  # noqa: E402

TEMPLATE = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
SAID = [{"role": "user", "content": "abc def"}]
GREEDY = {"temperature": 0, "max_tokens": 6}


@pytest.fixture(scope="module")
def runnable(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Runnable:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=256)
    found = load(written(tmp_path_factory.mktemp("serve") / "out", made, integer(4, 32), "vllm"))
    found.tokenizer.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def address(runnable: Runnable) -> Iterator[str]:
    listening = _bound("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(Endpoint(runnable, "tiny").app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def ask(address: str, path: str, body: Any = None, kind: str = "application/json") -> tuple[int, Any]:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, {"content-type": kind} if data is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_chat_is_what_generate_writes(address: str, runnable: Runnable) -> None:
    status, found = ask(address, "/v1/chat/completions", {"model": "tiny", "messages": SAID, **GREEDY})
    expected = generate(runnable, "abc def", max_new_tokens=6, greedy=True)
    assert status == 200
    assert found["choices"][0]["message"] == {"role": "assistant", "content": expected.text}
    assert found["usage"] == {
        "prompt_tokens": expected.prompt_tokens, "completion_tokens": len(expected.tokens),
        "total_tokens": expected.prompt_tokens + len(expected.tokens),
    }  # fmt: skip
    assert found["choices"][0]["finish_reason"] == ("stop" if expected.finished else "length")
    assert ask(address, "/v1/models")[1]["data"][0]["id"] == "tiny"
    assert ask(address, "/v1/models/tiny")[1]["id"] == "tiny"


def test_streams_carry_the_same_text_and_the_counts(address: str) -> None:
    body = {"messages": SAID, **GREEDY, "stream": True, "stream_options": {"include_usage": True}}
    whole = ask(address, "/v1/chat/completions", {"messages": SAID, **GREEDY})[1]
    request = urllib.request.Request(
        address + "/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        events = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert said == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_the_openai_client_understands_it(address: str) -> None:
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["tiny"]
    whole = client.chat.completions.create(model="tiny", messages=SAID, **GREEDY)
    stream = client.chat.completions.create(model="tiny", messages=SAID, stream=True, **GREEDY)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == whole.choices[0].message.content
    text = client.completions.create(model="tiny", prompt="abc", **GREEDY)
    assert text.usage.completion_tokens == 6
    with pytest.raises(openai.NotFoundError, match="is not served"):
        client.chat.completions.create(model="other", messages=SAID)


def test_log_probabilities_are_those_that_lm_eval_sums(address: str, runnable: Runnable) -> None:
    """A prompt of token ids is echoed with the log-probability of each, given those before it."""
    ids = prompt_ids(runnable, "abc def ghi")
    body = {"prompt": [ids], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    status, found = ask(address, "/v1/completions", body)
    assert status == 200
    told = found["choices"][0]["logprobs"]
    import torch

    with torch.inference_mode():
        logits = runnable(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    assert told["token_logprobs"][0] is None
    assert len(told["tokens"]) == len(ids) + 1
    for place in range(1, len(ids)):
        assert told["token_logprobs"][place] == pytest.approx(float(logits[place - 1, ids[place]]), abs=1e-4)
        assert max(told["top_logprobs"][place].values()) == pytest.approx(float(logits[place - 1].max()), abs=1e-4)
    several = ask(address, "/v1/completions", {"prompt": ["abc", "def"], **GREEDY})[1]
    assert [each["index"] for each in several["choices"]] == [0, 1]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/chat/completions", b"{", 400, "not JSON"),
        ("/v1/chat/completions", b"[" * 100_000, 400, "not JSON"),
        ("/v1/chat/completions", [1], 400, "JSON object"),
        ("/v1/chat/completions", {"model": "gpt-4", "messages": SAID}, 404, "'gpt-4' is not served"),
        ("/v1/chat/completions", {"messages": []}, 400, "at least one message"),
        ("/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400, "'role'"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "'text'"),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "abc " * 400}]},
            400,
            "context of this model",
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "a " * 400}], "stream": True},
            400,
            "context",
        ),
        ("/v1/chat/completions", {"messages": SAID, "max_tokens": 0}, 400, "'max_tokens'"),
        ("/v1/chat/completions", {"messages": SAID, "temperature": -1}, 400, "'temperature'"),
        ("/v1/chat/completions", {"messages": SAID, "top_p": "x"}, 400, "'top_p'"),
        ("/v1/chat/completions", {"messages": SAID, "seed": -1}, 400, "'seed'"),
        ("/v1/chat/completions", {"messages": SAID, "stop": [1]}, 400, "'stop'"),
        ("/v1/chat/completions", {"messages": SAID, "n": 2}, 400, "'n' must be 1"),
        ("/v1/chat/completions", {"messages": SAID, "stream": "yes"}, 400, "'stream'"),
        ("/v1/chat/completions", {"messages": SAID, "tools": [{}]}, 400, "'tools' is not supported"),
        ("/v1/completions", {"prompt": ""}, 400, "empty"),
        ("/v1/completions", {"prompt": [[99999]]}, 400, "token ids outside"),
        ("/v1/completions", {}, 400, "'prompt' must be"),
        ("/v1/completions", {"prompt": "a", "logprobs": 99}, 400, "'logprobs'"),
        ("/v1/chat/completions", b" " * (17 << 20), 413, "larger than"),
        ("/v1/embeddings", {"input": "x"}, 404, "Not Found"),
        ("/../../etc/passwd", None, 404, "Not Found"),
        ("/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", None, 404, "is not served"),
        ("/v1/chat/completions", None, 405, "Method Not Allowed"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else "",
)
def test_requests_that_are_none_are_answered_and_the_next_is_served(
    address: str, path: str, body: Any, status: int, said: str
) -> None:
    found, answer = ask(address, path, body)
    assert (found, said in answer["error"]["message"]) == (status, True), answer
    assert ask(address, "/v1/completions", {"prompt": "abc", **GREEDY})[0] == 200


def test_what_a_web_page_can_send_unasked_is_refused(address: str) -> None:
    assert ask(address, "/v1/completions", {"prompt": "abc"}, kind="text/plain")[0] == 415


def test_fifty_clients_at_once_are_all_served(address: str) -> None:
    def one(number: int) -> Any:
        return ask(address, "/v1/completions", {"prompt": f"abc {number}", **GREEDY})

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(one, range(50)))
    assert [status for status, _ in answers] == [200] * 50
    for number in (0, 25, 49):
        assert answers[number][1]["choices"] == one(number)[1]["choices"], "each got its own answer"


def test_a_client_that_closes_its_stream_does_not_hold_up_the_next(address: str) -> None:
    body = json.dumps({"prompt": "abc", "max_tokens": 200, "temperature": 1, "seed": 1, "stream": True}).encode()
    host, port = address.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port)), timeout=30) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                + f"content-length: {len(body)}\r\n\r\n".encode() + body
            )  # fmt: skip
            assert b"200 OK" in raw.recv(200)
    assert ask(address, "/v1/completions", {"prompt": "abc", **GREEDY})[0] == 200


def test_a_port_in_use_and_a_checkpoint_that_is_none(address: str, tmp_path: Path) -> None:
    port = address.rpartition(":")[2]
    result = natprec("serve", tmp_path, "--port", port)
    assert (result.code, "cannot listen" in result.err) == (2, True), result.err
    with pytest.raises(InputError, match="no address"):
        _bound("no such host", 0)
    result = natprec("serve", tmp_path / "none", "--port", 0)
    assert result.code == 2, result.err
    folder = written(tmp_path / "encoder", encoder(vocab_size=512), integer(4, 32), "natprec")
    result = natprec("serve", folder, "--port", 0)
    assert result.code == 2, result.err
