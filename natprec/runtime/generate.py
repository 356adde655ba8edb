"""Text out of a loaded checkpoint: the chat template, one pass over the prompt, then token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.data.chat import has_template, rendered
from natprec.errors import InputError
from natprec.runtime.load import Runnable
from natprec.utils.seeds import check_seed


@dataclass(frozen=True)
class Generation:
    """What was written, and how fast.

    Attributes:
        text: without the prompt and without special tokens.
        tokens: numbers of the new tokens, a closing end-of-text included.
        prompt_tokens: how many the prompt has, template included.
        prefill_seconds: until the first new token.
        decode_seconds: for all the others.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens after the first, per second; None if there was only one."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt, per second."""
        return self.prompt_tokens / self.prefill_seconds


def generate(
    runnable: Runnable,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    greedy: bool = False,
    seed: int = 0,
    on_text: Callable[[str], None] = lambda _: None,
) -> Generation:
    """Write on from a prompt, until the model ends the text, `max_new_tokens`, or the end of its context.

    Args:
        prompt: one message of a user where the tokenizer has a chat template, else the beginning of a text.
        greedy: always the likeliest token; otherwise drawn, as the checkpoint's generation_config.json says.
        on_text: called with each new piece of text.
    Raises:
        InputError: an encoder, an empty prompt, or one that leaves no room in the context.
    """
    draw = torch.Generator().manual_seed(check_seed(seed))
    ids = prompt_ids(runnable, prompt)
    limit = _room(runnable, len(ids), max_new_tokens)
    config = runnable.model.generation_config
    ends = _end_tokens(runnable)
    tokens: list[int] = []
    pieces = _Pieces(runnable.tokenizer, on_text)
    start = first = time.perf_counter()
    for logits in _logits(runnable, ids, tokens):
        tokens.append(int(logits.argmax()) if greedy else _drawn(logits, config, draw))
        if len(tokens) == 1:
            first = time.perf_counter()
        if tokens[-1] in ends or len(tokens) == limit:
            break
        pieces.add(tokens[-1])
    else:
        raise AssertionError("logits end only when they are no longer asked for")
    if tokens[-1] not in ends:
        pieces.add(tokens[-1])
    stop = time.perf_counter()
    return Generation(pieces.end(), tuple(tokens), len(ids), first - start, stop - first)


def prompt_ids(runnable: Runnable, prompt: str) -> list[int]:
    """The tokens that the model reads, chat template included.

    Raises:
        InputError: the model writes no text, or there is nothing to read.
        ModelError: the chat template fails, or exceeds its limits.
    """
    if not runnable.task.generates:
        raise InputError(f"the checkpoint is {runnable.task.noun}, which writes no text; give one of a language model")
    tokenizer = runnable.tokenizer
    if not prompt:
        raise InputError("prompt '' is empty; give some text")
    if has_template(tokenizer):
        text = rendered(tokenizer, [{"role": "user", "content": prompt}], add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer(prompt).input_ids)


def _room(runnable: Runnable, prompt: int, wanted: int) -> int:
    """How many tokens may be written."""
    if wanted < 1:
        raise InputError(f"--max-new-tokens {wanted}: give at least 1")
    context = getattr(runnable.model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return wanted
    if prompt >= context:
        raise InputError(
            f"the prompt has {prompt} tokens, the context of this model {context}; shorten the prompt to less than that"
        )
    return min(wanted, context - prompt)


def _end_tokens(runnable: Runnable) -> set[int]:
    """Tokens after which the model has no more to say."""
    found = runnable.model.generation_config.eos_token_id
    found = runnable.tokenizer.eos_token_id if found is None else found
    return set(found if isinstance(found, list) else [found]) - {None}


@torch.inference_mode()
def _logits(runnable: Runnable, ids: list[int], tokens: list[int]) -> Iterator[Tensor]:
    """Logits (vocabulary,) of the token that comes next, on the CPU, each time one has been added to `tokens`."""
    past = None
    while True:
        new = [tokens[-1]] if past is not None else ids
        at = torch.tensor([new], device=runnable.device)
        output = runnable(input_ids=at, past_key_values=past, use_cache=True, logits_to_keep=1, return_dict=True)
        past = output.past_key_values
        yield output.logits[0, -1].cpu()


def _drawn(logits: Tensor, config: Any, draw: torch.Generator) -> int:
    """A token by temperature, top-k and top-p, where the checkpoint sets them."""
    logits = logits.float() / (config.temperature or 1.0)
    values, order = logits.sort(descending=True)
    if config.top_k:
        values = values[: config.top_k]
    chances = values.softmax(0)
    if config.top_p is not None and config.top_p < 1:
        chances = chances[chances.cumsum(0) - chances < config.top_p]
    return int(order[torch.multinomial(chances, 1, generator=draw)])


class _Pieces:
    """Text of tokens as it becomes certain: a character may take several, a space may come before the next."""

    def __init__(self, tokenizer: Any, on_text: Callable[[str], None]) -> None:
        from transformers import TextStreamer

        streamer = TextStreamer(tokenizer, skip_special_tokens=True)
        streamer.on_finalized_text = lambda text, stream_end=False: self._take(text)  # type: ignore[method-assign]
        self._streamer, self._on_text = streamer, on_text
        self._text: list[str] = []

    def _take(self, text: str) -> None:
        if text:
            self._text.append(text)
            self._on_text(text)

    def add(self, token: int) -> None:
        self._streamer.put(torch.tensor([token]))

    def end(self) -> str:
        self._streamer.end()
        return "".join(self._text)
