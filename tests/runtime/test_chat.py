"""A chat: history, the end of a turn, stop strings, and the loop on a terminal."""

from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from natprec.commands.generate import converse
from natprec.errors import InputError
from natprec.formats import integer
from natprec.runtime.chat import Chat
from natprec.runtime.generate import Sampling, end_tokens, generate, prompt_ids, write
from natprec.runtime.load import Runnable, load
from tests.arrange import subject
from tests.run_command import natprec
from tests.runtime.test_load import written

TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}[a] {% endif %}"
)
GREEDY = Sampling(greedy=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=200)
    return written(tmp_path_factory.mktemp("chat") / "out", made, integer(4, 32), "vllm")


@pytest.fixture
def runnable(folder: Path) -> Runnable:
    made = load(folder)
    made.tokenizer.chat_template = TEMPLATE
    return made


def read_by(runnable: Runnable, chat: Chat) -> str:
    """What the model reads next time."""
    return str(runnable.tokenizer.decode(prompt_ids(runnable, chat._with_system(chat.turns))))


def test_a_chat_remembers_both_sides(runnable: Runnable) -> None:
    chat = Chat(runnable, 5, GREEDY, system="be brief")
    first = chat.say("one")
    second = chat.say("two")
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one"},
             {"role": "assistant", "content": first.text}, {"role": "user", "content": "two"}]  # fmt: skip
    assert second.tokens == generate(runnable, turns, max_new_tokens=5, greedy=True).tokens
    assert "[system] be brief</s>[user] one</s>" in read_by(runnable, chat)


def test_old_turns_are_cut_where_the_context_is_full_and_the_system_stays(runnable: Runnable) -> None:
    chat = Chat(runnable, 20, GREEDY, system="be brief")
    for number in range(12):
        chat.say(f"turn {number} abc def")
    assert chat.cut > 0
    text = read_by(runnable, chat)
    assert "be brief" in text
    assert "turn 0 " not in text
    assert "turn 11 " in text
    with pytest.raises(InputError, match="context of this model 200"):
        chat.say("abc " * 400)


def test_a_turn_ends_at_the_token_that_the_template_ends_it_with(runnable: Runnable) -> None:
    runnable.model.generation_config.eos_token_id = 5
    assert end_tokens(runnable) == {5, runnable.tokenizer.eos_token_id}
    runnable.tokenizer.chat_template = None
    assert end_tokens(runnable) == {5}


@pytest.mark.parametrize("at", [1, 4, 7])
def test_stop_strings_end_the_text_and_are_not_shown(runnable: Runnable, at: int) -> None:
    ids = prompt_ids(runnable, "abc")
    whole = write(runnable, ids, 20, GREEDY).text
    stop = whole[at : at + 3]
    pieces: list[str] = []
    found = write(runnable, ids, 20, Sampling(greedy=True, stop=("never", stop)), pieces.append)
    assert found.text == "".join(pieces) == whole[: whole.index(stop)]
    assert found.finished
    assert not write(runnable, ids, 3, GREEDY).finished


def test_a_cancelled_text_ends_at_the_next_token(runnable: Runnable) -> None:
    ids = prompt_ids(runnable, "abc")
    assert len(write(runnable, ids, 50, GREEDY, cancelled=lambda: True).tokens) == 1


def test_temperature_0_is_greedy_and_values_are_checked(runnable: Runnable) -> None:
    greedy = generate(runnable, "abc", max_new_tokens=8, greedy=True).tokens
    assert generate(runnable, "abc", max_new_tokens=8, temperature=0.0).tokens == greedy
    assert generate(runnable, "abc", max_new_tokens=8, top_p=1e-9, seed=4).tokens == greedy
    for wrong in (Sampling(temperature=-1), Sampling(temperature=float("nan")), Sampling(top_p=0), Sampling(top_p=2)):
        with pytest.raises(InputError):
            wrong.check()


def test_the_loop_answers_clears_and_exits(
    runnable: Runnable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["one", "", "two", "/clear", "three", "/exit", "never"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(lines))
    chat = Chat(runnable, 4, GREEDY)
    converse(chat)
    assert [turn["content"] for turn in chat.turns if turn["role"] == "user"] == ["three"]
    assert next(lines) == "never"
    assert chat.turns[-1]["content"] in capsys.readouterr().out
    monkeypatch.setattr(builtins, "input", lambda prompt: (_ for _ in ()).throw(EOFError))
    converse(chat)


def test_text_on_standard_input_is_a_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("abc def"))
    piped = natprec("generate", folder, "--greedy", "--max-new-tokens", 6)
    given = natprec("generate", folder, "--greedy", "--max-new-tokens", 6, "--prompt", "abc def")
    assert piped.code == given.code == 0, piped.err
    assert piped.out.splitlines()[0] == given.out.splitlines()[0]
