"""Token after token in memory of a fixed size, so that a GPU records the way through the model once and replays it.

A model of 32 blocks launches some thousand operations for a token; a CUDA graph is one launch. What changes from token
to token is in tensors that stay where they are: the token, keys and values, and how many there are (transformers'
`StaticCache`, which counts on the device). Elsewhere than on a GPU the same steps run without being recorded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import StaticCache, StaticLayer

if TYPE_CHECKING:
    from natprec.runtime.load import Runnable

WARMING = 2
"""Runs before one is recorded: kernels are compiled and tuned at their first."""


def records(runnable: Runnable) -> bool:
    """Whether decoding is recorded: on a GPU, for models whose caches transformers can give a fixed size."""
    model = runnable.model
    if runnable.device.type != "cuda" or not getattr(model, "_can_compile_fullgraph", False):
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(config=model.config, max_cache_len=1).layers)


class Decoding:
    """One text; call `begin`, then `next` for each token."""

    def __init__(self, runnable: Runnable, room: int) -> None:
        """`room`: tokens, prompt included."""
        self._runnable = runnable
        self._cache = StaticCache(config=runnable.model.config, max_cache_len=room + WARMING)
        self._token = torch.zeros(1, 1, dtype=torch.int64, device=runnable.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def begin(self, ids: list[int]) -> Tensor:
        """Logits (vocabulary,) of what follows a prompt, on the device."""
        return self._forward(torch.tensor([ids], device=self._runnable.device))

    def next(self, token: int) -> Tensor:
        """The same of what follows one more token; valid until the next call."""
        self._token.fill_(token)
        if self._runnable.device.type != "cuda":
            return self._forward(self._token)
        if self._graph is None:
            self._record()
        assert self._graph is not None
        self._graph.replay()
        return self._logits

    def _forward(self, ids: Tensor) -> Tensor:
        return self._runnable.read(ids, self._cache)[0][0]

    def _record(self) -> None:
        """Warm up beside the stream that is used, take back what that added, and record one token's way."""
        lengths = [layer.cumulative_length.clone() for layer in self._layers]
        aside = torch.cuda.Stream(self._runnable.device)
        aside.wait_stream(torch.cuda.current_stream(self._runnable.device))
        with torch.cuda.stream(aside):
            for _ in range(WARMING):
                self._forward(self._token)
        torch.cuda.current_stream(self._runnable.device).wait_stream(aside)
        for layer, length in zip(self._layers, lengths, strict=True):
            layer.cumulative_length.copy_(length)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._forward(self._token)

    @property
    def _layers(self) -> list[Any]:
        return list(self._cache.layers)
