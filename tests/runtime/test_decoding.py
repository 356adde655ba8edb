"""Decoding in memory of a fixed size writes what decoding in growing memory does; a GPU replays one recorded step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from natprec.formats import integer
from natprec.runtime import generate as generating
from natprec.runtime.decoding import WARMING, Decoding, records
from natprec.runtime.generate import generate, prompt_ids
from natprec.runtime.load import Runnable, load
from tests.arrange import subject
from tests.runtime.test_load import written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = subject(tiny_tokenizer, vocab_size=512, max_position_embeddings=64)
    return written(tmp_path_factory.mktemp("decode") / "out", made, integer(4, 32), "vllm")


@pytest.fixture(scope="module")
def runnable(folder: Path) -> Runnable:
    return load(folder)


@pytest.mark.parametrize("prompt", ["some words", "other"])
def test_the_same_text(runnable: Runnable, monkeypatch: pytest.MonkeyPatch, prompt: str) -> None:
    growing = generate(runnable, prompt, max_new_tokens=20, greedy=True)
    begun: list[int] = []
    begin = Decoding.begin

    def counted(self: Decoding, ids: list[int]) -> Any:
        begun.append(len(ids))
        return begin(self, ids)

    monkeypatch.setattr(generating, "records", lambda _: True)
    monkeypatch.setattr(Decoding, "begin", counted)
    fixed = generate(runnable, prompt, max_new_tokens=20, greedy=True)
    assert fixed.tokens == growing.tokens
    assert fixed.text == growing.text
    assert begun == [fixed.prompt_tokens]


@torch.inference_mode()
def test_memory_does_not_move(runnable: Runnable) -> None:
    """What a graph reads and writes stays where it was: keys, values and their number, which the device counts."""
    ids = prompt_ids(runnable, "some words")
    decoding = Decoding(runnable, len(ids) + 8)
    decoding.begin(ids)
    layers = decoding._layers
    places = [(layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr()) for layer in layers]
    for step in range(4):
        decoding.next(step)
        assert all(int(layer.cumulative_length) == len(ids) + step + 1 for layer in layers)
    assert places == [
        (layer.keys.data_ptr(), layer.values.data_ptr(), layer.cumulative_length.data_ptr()) for layer in layers
    ]
    assert layers[0].keys.shape[2] == len(ids) + 8 + WARMING


def test_a_cpu_records_nothing(runnable: Runnable) -> None:
    assert not records(runnable)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU; the same steps run unrecorded on the CPU")
def test_a_recorded_step_writes_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu = load(folder, device="cuda")
    assert records(on_gpu)
    recorded = generate(on_gpu, "some words", max_new_tokens=20, greedy=True)
    monkeypatch.setattr(generating, "records", lambda _: False)
    assert generate(on_gpu, "some words", max_new_tokens=20, greedy=True).tokens == recorded.tokens
