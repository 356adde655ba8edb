"""Tensors of the next segment are read while one is computed: the measurement stays the same, bit by bit."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from natprec.measurement.measure import measure
from natprec.models.read_ahead import ReadAhead
from tests.arrange import tokens
from tests.conftest import tiny_model
from tests.models.test_weights import opened, same, saved


class Stored:
    """Tensors that say which thread read them."""

    def __init__(self) -> None:
        self.read: list[tuple[str, str]] = []

    def tensor(self, name: str) -> Tensor:
        self.read.append((name, threading.current_thread().name))
        if name == "gone":
            raise FileNotFoundError(name)
        return torch.full((2,), float(len(name)))


def test_what_is_expected_is_read_once_by_another_thread() -> None:
    stored = Stored()
    ahead = ReadAhead(stored)
    ahead.expect(["a", "bb"])
    assert ahead.take("bb").tolist() == [2, 2]
    assert ahead.take("a").tolist() == [1, 1]
    assert [name for name, _ in stored.read] == ["a", "bb"]
    assert all(thread.startswith("natprec-reads") for _, thread in stored.read)
    assert ahead.take("a").tolist() == [1, 1]
    assert stored.read[-1] == ("a", threading.current_thread().name)


def test_what_goes_wrong_is_said_where_it_is_taken() -> None:
    ahead = ReadAhead(Stored())
    ahead.expect(["gone"])
    with pytest.raises(FileNotFoundError):
        ahead.take("gone")


def test_the_same_measurement(tmp_path: Path, tiny_tokenizer: Any) -> None:
    folder = saved(tmp_path / "m", tiny_model(vocab_size=96, num_hidden_layers=4), tiny_tokenizer)
    plain, ahead = opened(folder), opened(folder)
    weights: Any = ahead.segmented.weights
    weights.read_ahead = ReadAhead(weights.stored)
    taken: list[bool] = []
    take = weights.read_ahead.take
    weights.read_ahead.take = lambda name: (taken.append(name in weights.read_ahead._coming), take(name))[1]
    text = tokens(4, 12)
    assert same(measure(plain, text, group_size=16), measure(ahead, text, group_size=16))
    assert sum(taken) > len(taken) / 2
