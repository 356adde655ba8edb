"""A chat template is a stranger's program: whatever it does ends in a NatprecError, and soon."""

from __future__ import annotations

import resource
import signal
import threading
import time
from copy import deepcopy
from typing import Any

import pytest

from natprec.data import chat
from natprec.data.chat import RefusedError, rendered
from natprec.errors import ModelError
from natprec.runtime.generate import prompt_ids
from natprec.tasks import CAUSAL

TURNS = [{"role": "user", "content": "hello"}]
FOREVER = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


def with_template(tokenizer: Any, template: str) -> Any:
    """The same tokenizer under a chat template."""
    made = deepcopy(tokenizer)
    made.chat_template = template
    return made


def test_a_template_writes_what_the_model_reads(tiny_tokenizer: Any) -> None:
    made = with_template(tiny_tokenizer, "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}")
    assert rendered(made, TURNS) == "<s>user: hello</s>"


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        (FOREVER, "more than 0.5 seconds"),
        ("{{ 9 ** (9 ** 9) }}", "more than 0.5 seconds"),
        ("{{ 'a' * 10**10 }}", "bytes"),
        ("{{ 'a' * 20_000_000 }}", "20000000 characters"),
        ("{% set n = namespace(x='aa') %}{% for i in range(90) %}{% set n.x = n.x + n.x %}{% endfor %}", "bytes"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ a.b.c }}", "undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('only one role') }}", "only one role"),
    ],
)
def test_what_a_template_may_not_do(
    tiny_tokenizer: Any, template: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sandbox of transformers alone the first five run for hours or take all memory."""
    monkeypatch.setattr(chat, "SECONDS", 0.5)
    limits, start = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    with pytest.raises(ModelError, match=cause) as caught:
        rendered(with_template(tiny_tokenizer, template), TURNS)
    assert "\n" not in str(caught.value)
    assert "replace or remove the chat template" in str(caught.value)
    assert time.process_time() - start < 5
    assert resource.getrlimit(resource.RLIMIT_AS) == limits
    assert signal.getsignal(signal.SIGVTALRM) == signal.SIG_DFL


def test_a_template_that_looks_for_parts_gets_them(tiny_tokenizer: Any) -> None:
    """As LLaVA's, which writes nothing of a plain text."""
    parts = "{% for turn in messages %}{% for part in turn.content %}{{ part.text }}{% endfor %}|{% endfor %}"
    assert rendered(with_template(tiny_tokenizer, parts), TURNS) == "hello|"
    strict = "{% for turn in messages %}{{ turn.content[0]['text'] | upper | lower }}{% endfor %}"
    assert rendered(with_template(tiny_tokenizer, strict), TURNS) == "hello"


def test_a_refusal_is_told_from_an_exceeded_limit(tiny_tokenizer: Any) -> None:
    with pytest.raises(RefusedError):
        rendered(with_template(tiny_tokenizer, "{{ raise_exception('no') }}"), TURNS)
    with pytest.raises(ModelError) as caught:
        rendered(with_template(tiny_tokenizer, "{{ 'a' * 10**8 }}"), TURNS)
    assert not isinstance(caught.value, RefusedError)


def test_other_threads_render_too(tiny_tokenizer: Any) -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(rendered(with_template(tiny_tokenizer, "a"), TURNS)))
    thread.start()
    thread.join()
    assert found == ["a"]


def test_generate_refuses_a_hostile_template(tiny_tokenizer: Any) -> None:
    class Runnable:
        task = CAUSAL
        tokenizer = with_template(tiny_tokenizer, "{{ a.b.c }}")

    with pytest.raises(ModelError, match=r"chat template fails \('a' is undefined\)"):
        prompt_ids(Runnable(), "hello")  # type: ignore[arg-type]
