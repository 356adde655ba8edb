"""Text is that of transformers' own greedy search on the dense weights; prompts that cannot be used say why."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from natprec.checkpoints.dense_reader import load_quantized
from natprec.errors import InputError, ModelError
from natprec.formats import integer
from natprec.runtime.generate import generate, prompt_ids
from natprec.runtime.load import Runnable, load
from tests.arrange import encoder, subject
from tests.run_command import natprec as command
from tests.runtime.test_load import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=64)
    return written(tmp_path_factory.mktemp("generate") / "out", made, integer(4, 32), "vllm")


@pytest.fixture(scope="module")
def runnable(folder: Path) -> Runnable:
    return load(folder)


@torch.inference_mode()
def test_greedy_text_is_that_of_the_dense_weights(folder: Path, runnable: Runnable) -> None:
    for prompt in ("some words", "other"):
        pieces: list[str] = []
        found = generate(runnable, prompt, max_new_tokens=20, greedy=True, on_text=pieces.append)
        ids = prompt_ids(runnable, prompt)
        model = load_quantized(folder)
        expected = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=20)[0, len(ids) :].tolist()
        assert list(found.tokens) == expected
        assert found.text == "".join(pieces) == runnable.tokenizer.decode(expected, skip_special_tokens=True)
        assert found.prompt_tokens == len(ids)
        assert found.tokens_per_second is None or found.tokens_per_second > 0


def test_drawing_is_seeded(runnable: Runnable) -> None:
    first, again, other = (generate(runnable, "words", max_new_tokens=12, seed=seed).tokens for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_it_stops_where_the_context_ends_and_at_the_end_of_text(runnable: Runnable) -> None:
    prompt = "a b c d e f g h"
    length = len(prompt_ids(runnable, prompt))
    written_on = generate(runnable, prompt, max_new_tokens=500, seed=3)
    assert len(written_on.tokens) == 64 - length or written_on.tokens[-1] == runnable.tokenizer.eos_token_id
    first = generate(runnable, prompt, max_new_tokens=5, greedy=True).tokens[0]
    runnable.model.generation_config.eos_token_id = [first]
    try:
        assert generate(runnable, prompt, greedy=True).tokens == (first,)
    finally:
        runnable.model.generation_config.eos_token_id = 1


@pytest.mark.parametrize("positions", [-1, 0])
def test_a_model_that_bounds_no_context(runnable: Runnable, monkeypatch: pytest.MonkeyPatch, positions: int) -> None:
    """XLNet says -1."""
    monkeypatch.setattr(runnable.model.config, "max_position_embeddings", positions)
    assert runnable.context is None
    assert len(generate(runnable, "some words", max_new_tokens=3, greedy=True).tokens) <= 3


def test_a_model_that_keeps_nothing_of_earlier_tokens_is_refused(
    runnable: Runnable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XLNet's output has no such field; others' is None. Each token would be read as if it were the first."""
    for nothing in ({}, {"past_key_values": None}):
        output = SimpleNamespace(logits=torch.zeros(1, 1, 512), **nothing)
        monkeypatch.setattr(Runnable, "__call__", lambda self, output=output, **_: output)
        with pytest.raises(ModelError, match="LlamaForCausalLM keeps no keys and values of the tokens before"):
            generate(runnable, "some words", max_new_tokens=3)


def test_the_chat_template_is_used(folder: Path, runnable: Runnable) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    runnable.tokenizer.chat_template = template
    try:
        assert runnable.tokenizer.decode(prompt_ids(runnable, "hello")) == "[user] hello\n[assistant] "
    finally:
        runnable.tokenizer.chat_template = None


def test_prompts_that_cannot_be_used(runnable: Runnable, tmp_path: Path, encoder_tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"the prompt has \d+ tokens, the context of this model 64; shorten"):
        generate(runnable, "word " * 80)
    with pytest.raises(InputError, match="prompt '' is empty"):
        generate(runnable, "")
    with pytest.raises(InputError, match="--max-new-tokens 0"):
        generate(runnable, "word", max_new_tokens=0)
    from dataclasses import replace

    made = replace(encoder(), tokenizer=encoder_tokenizer)
    with pytest.raises(InputError, match="an encoder, which writes no text"):
        generate(load(written(tmp_path / "out", made, integer(4, 32), "vllm")), "word")


def test_the_command(folder: Path) -> None:
    shown = command("generate", folder, "--prompt", "some words", "--max-new-tokens", 6, "--greedy", "--explain")
    assert shown.code == 0, shown.err
    assert "tokens per second" in shown.out or "1 tokens;" in shown.out
    assert "runs 4 of int4-g32, first model.layers.0.self_attn.o_proj" not in shown.err
    assert " of int4-g32, first model.layers.0" in shown.out
    result = command("generate", folder, "--prompt", "some words", "--max-new-tokens", 6, "--greedy", "--json")
    found = json.loads(result.out)
    assert found["text"] in shown.out
    assert {"tokens_per_second", "prefill_tokens_per_second", "resident_bytes"} <= found.keys()
    assert found["kernels"]["model.layers.0.mlp.down_proj"] in ("planes", "int4pack")
    refused = command("generate", folder, "--prompt", "word " * 80)
    assert refused.code == 2
    assert "shorten the prompt" in refused.reason
