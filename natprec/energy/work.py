"""Prefill and decode of a model in this process, apart: a pass over the prompts, and steps from one copy of its cache.

A decode cycle begins where the prompt ends, with the cache that the prompt left, and writes the same tokens each time;
so its windows hold no prefill, and nothing has to be subtracted. Each step waits for its tokens, as whoever streams
them must.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.errors import InputError
from natprec.runtime.cache import Growing
from natprec.runtime.load import Runnable


@dataclass(frozen=True)
class Shape:
    """How much is read and written at once.

    Attributes:
        batch: sequences; prompt: tokens of each that are read; new: tokens of each that are written.
    """

    batch: int
    prompt: int
    new: int


class Prefill:
    """Prompts are read, and the first new token is chosen."""

    def __init__(self, runnable: Runnable, ids: Tensor) -> None:
        """What is read each time: (batch, prompt) tokens."""
        self.runnable, self.ids = runnable, ids

    @torch.inference_mode()
    def cycle(self) -> Iterator[int]:
        """See `Work`: one step of batch × prompt tokens."""
        _, tokens = _step(self.runnable, self.ids, None)
        yield self.ids.numel() if tokens else 0


class Decode:
    """All new tokens but the first, one step for each."""

    def __init__(self, runnable: Runnable, ids: Tensor, new: int) -> None:
        self.runnable, self.new = runnable, new
        with torch.inference_mode():
            self.cache, self.first = _step(runnable, ids, None)
        self.prompt = ids.shape[1]

    @torch.inference_mode()
    def cycle(self) -> Iterator[int]:
        """See `Work`: new - 1 steps of batch tokens."""
        cache, tokens = renewed(self.cache), self.first
        for _ in range(self.new - 1):
            at = torch.tensor([[token] for token in tokens], device=self.runnable.device)
            cache, tokens = _step(self.runnable, at, cache)
            yield len(tokens)

    def cache_bytes(self) -> float:
        """Bytes of keys and values that one token of one sequence leaves."""
        tensors = [each for layer in self.cache.layers for each in (layer.keys, layer.values) if each is not None]
        total = sum(each.numel() * each.element_size() for each in tensors)
        return total / (len(self.first) * self.prompt)


def renewed(cache: Any) -> Any:
    """A cache that goes on from the same tokens and leaves the given one as it is.

    Layers that append leave what they hold untouched, so they share it; others are copied whole.
    """
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    appending = (DynamicLayer, DynamicSlidingWindowLayer, Growing)
    made = copy.copy(cache)
    made.layers = [copy.copy(layer) if type(layer) in appending else copy.deepcopy(layer) for layer in cache.layers]
    return made


def prompts(runnable: Runnable, shape: Shape, seed: int) -> Tensor:
    """(batch, prompt) tokens drawn alike from the vocabulary: what a model computes does not depend on them."""
    vocabulary = int(runnable.model.config.get_text_config().vocab_size)
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(vocabulary, (shape.batch, shape.prompt), generator=draw).to(runnable.device)


@torch.inference_mode()
def bits_of_choice(runnable: Runnable, seed: int, sequences: int = 4, tokens: int = 64) -> float:
    """Entropy of the next token in bits, over text that the model writes by its own chances from a random token on."""
    draw = torch.Generator().manual_seed(seed)
    at = prompts(runnable, Shape(sequences, 1, tokens), seed)
    past, entropies = None, []
    for _ in range(tokens):
        logits, past = runnable.read(at, past)
        chances = logits.float().cpu().log_softmax(-1).exp()
        entropies.append(torch.special.entr(chances).sum(-1))
        at = torch.multinomial(chances, 1, generator=draw).to(runnable.device)
    return float(torch.stack(entropies).mean() / torch.log(torch.tensor(2.0)))


def fitting(runnable: Runnable, prompt: int | None, new: int | None) -> tuple[int, int]:
    """Tokens to read and to write; what the user left open fits into the model's context.

    Raises:
        InputError: the model writes no text, or what the user gave does not fit.
    """
    if not runnable.task.generates:
        raise InputError(f"the model is {runnable.task.noun}, which writes no tokens; give a language model")
    context = runnable.context
    written = new or (128 if not context else max(2, min(128, (context - (prompt or 0)) // (1 if prompt else 2))))
    read = prompt or (512 if not context else max(1, min(512, context - written)))
    if context and read + written > context:
        raise InputError(
            f"prompt-tokens {read} and new-tokens {written} exceed the context of this model, {context}; lower one"
        )
    return read, written


def _step(runnable: Runnable, ids: Tensor, past: Any) -> tuple[Any, list[int]]:
    """Read tokens after others: the cache, and the likeliest next token of each sequence."""
    logits, past = runnable.read(ids, past)
    return past, logits.argmax(-1).tolist()
