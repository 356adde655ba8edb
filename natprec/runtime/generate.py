"""Text out of a loaded checkpoint: the chat template, one pass over the prompt, then token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.data.chat import Turn, has_template, rendered
from natprec.errors import InputError, ModelError, first_line
from natprec.runtime.decoding import Decoding, records
from natprec.runtime.load import Runnable
from natprec.runtime.pieces import Pieces
from natprec.utils.seeds import check_seed
from natprec.utils.system_faults import told


@dataclass(frozen=True)
class Generation:
    """What was written, and how fast.

    Attributes:
        text: without the prompt and without special tokens.
        tokens: numbers of the new tokens, a closing end-of-text included.
        prompt_tokens: how many the prompt has, template included.
        prefill_seconds: until the first new token.
        decode_seconds: for all the others.
        finished: whether the model, or a stop string, ended the text; else there was no room for more.
    """

    text: str
    tokens: tuple[int, ...]
    prompt_tokens: int
    prefill_seconds: float
    decode_seconds: float
    finished: bool = True

    @property
    def tokens_per_second(self) -> float | None:
        """New tokens after the first, per second; None if there was only one."""
        return (len(self.tokens) - 1) / self.decode_seconds if len(self.tokens) > 1 else None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of the prompt, per second."""
        return self.prompt_tokens / self.prefill_seconds


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        greedy: always the likeliest token.
        temperature, top_p: None: as the checkpoint's generation_config.json says.
        stop: texts that end the writing, and are left out.
    """

    greedy: bool = False
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what is no way to draw.

        Raises:
            InputError: names the value.
        """
        check_seed(self.seed)
        if self.temperature is not None and not 0 <= self.temperature <= 100:
            raise InputError(f"temperature {self.temperature}: give a number from 0 (greedy) to 100")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top-p {self.top_p}: give a number above 0, up to 1")


def generate(
    runnable: Runnable,
    prompt: str | Sequence[Turn],
    *,
    max_new_tokens: int = 128,
    greedy: bool = False,
    seed: int = 0,
    temperature: float | None = None,
    top_p: float | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> Generation:
    """Write on from a prompt, until the model ends the text, `max_new_tokens`, or the end of its context.

    Args:
        prompt: one message of a user where the tokenizer has a chat template, else the beginning of a text; or the
            turns of a conversation.
        greedy: always the likeliest token; otherwise drawn, as the checkpoint's generation_config.json says.
        temperature, top_p: in place of what that file says.
        on_text: called with each new piece of text.
    Raises:
        InputError: an encoder, an empty prompt, or one that leaves no room in the context.
    """
    sampling = Sampling(greedy, temperature, top_p, seed)
    sampling.check()
    return write(runnable, prompt_ids(runnable, prompt), max_new_tokens, sampling, on_text)


def write(
    runnable: Runnable,
    ids: list[int],
    max_new_tokens: int,
    sampling: Sampling,
    on_text: Callable[[str], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> Generation:
    """Write on from token ids: see `generate`.

    Args:
        cancelled: asked before each token; the text ends where it says so.
    """
    sampling.check()
    draw = torch.Generator().manual_seed(sampling.seed)
    limit = _room(runnable, len(ids), max_new_tokens)
    config = runnable.model.generation_config
    greedy = sampling.greedy or sampling.temperature == 0
    ends = end_tokens(runnable)
    tokens: list[int] = []
    pieces = Pieces(runnable.tokenizer, on_text, sampling.stop)
    start = first = time.perf_counter()
    finished = False
    for logits in _logits(runnable, ids, tokens, len(ids) + limit):
        tokens.append(int(logits.argmax()) if greedy else _drawn(logits, config, draw, sampling))
        if len(tokens) == 1:
            first = time.perf_counter()
        if tokens[-1] in ends:
            finished = True
            break
        pieces.add(tokens[-1])
        finished = pieces.stopped
        if finished or len(tokens) == limit or cancelled():
            break
    else:
        raise AssertionError("logits end only when they are no longer asked for")
    stop = time.perf_counter()
    text = pieces.end()
    return Generation(text, tuple(tokens), len(ids), first - start, stop - first, finished or pieces.stopped)


def prompt_ids(runnable: Runnable, prompt: str | Sequence[Turn]) -> list[int]:
    """The tokens that the model reads, chat template included.

    Raises:
        InputError: the model writes no text, or there is nothing to read.
        ModelError: the chat template fails, or exceeds its limits.
    """
    refuse_silent(runnable)
    tokenizer = runnable.tokenizer
    if not prompt:
        raise InputError("prompt '' is empty; give some text")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if has_template(tokenizer):
        text = rendered(tokenizer, turns, add_generation_prompt=True)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    return list(tokenizer("\n\n".join(str(turn["content"]) for turn in turns)).input_ids)


def refuse_silent(runnable: Runnable) -> None:
    """Refuse a checkpoint that writes no text.

    Raises:
        InputError: it is an encoder.
    """
    if not runnable.task.generates:
        raise InputError(f"the checkpoint is {runnable.task.noun}, which writes no text; give one of a language model")


def _room(runnable: Runnable, prompt: int, wanted: int) -> int:
    """How many tokens may be written."""
    if wanted < 1:
        raise InputError(f"--max-new-tokens {wanted}: give at least 1")
    context = runnable.context
    if context is None:
        return wanted
    if prompt >= context:
        raise InputError(
            f"the prompt has {prompt} tokens, the context of this model {context}; shorten the prompt to less than that"
        )
    return min(wanted, context - prompt)


def end_tokens(runnable: Runnable) -> set[int]:
    """Tokens after which the model has no more to say: of a text, and of a turn."""
    found = runnable.model.generation_config.eos_token_id
    found = runnable.tokenizer.eos_token_id if found is None else found
    return {*(found if isinstance(found, list) else [found]), _end_of_turn(runnable.tokenizer)} - {None}


_SAID = "natprec"


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after what the model says."""
    if not has_template(tokenizer):
        return None
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _SAID}]
    try:
        _, found, rest = rendered(tokenizer, turns).rpartition(_SAID)
    except ModelError:
        return None
    ids = tokenizer(rest, add_special_tokens=False).input_ids if found else []
    special = set(tokenizer.all_special_ids) | set(getattr(tokenizer, "added_tokens_decoder", {}))
    return ids[0] if ids and ids[0] in special else None


@torch.inference_mode()
def _logits(runnable: Runnable, ids: list[int], tokens: list[int], room: int) -> Iterator[Tensor]:
    """Logits (vocabulary,) of the token that comes next, on the CPU, each time one has been added to `tokens`.

    Args:
        room: tokens that the text may have, prompt included.
    """
    if records(runnable):
        decoding = Decoding(runnable, room)
        yield decoding.begin(ids).cpu()
        while True:
            yield decoding.next(tokens[-1]).cpu()
    past = None
    while True:
        new = [tokens[-1]] if past is not None else ids
        at = torch.tensor([new], device=runnable.device)
        try:
            logits, past = runnable.read(at, past)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:  # of a family's own code
            if past is None or told(error) is not None:
                raise
            raise ModelError(
                f"{type(runnable.model).__name__} fails where it goes on from the tokens before ({first_line(error)}); "
                "its code in transformers does not support that, so neither does natprec generate"
            ) from error
        yield logits[0].cpu()


def _drawn(logits: Tensor, config: Any, draw: torch.Generator, sampling: Sampling) -> int:
    """A token by temperature, top-k and top-p, where they were asked for or the checkpoint sets them."""
    temperature = config.temperature if sampling.temperature is None else sampling.temperature
    top_p = config.top_p if sampling.top_p is None else sampling.top_p
    logits = logits.float() / (temperature or 1.0)
    values, order = logits.sort(descending=True)
    if config.top_k:
        values = values[: config.top_k]
    chances = values.softmax(0)
    if top_p is not None and top_p < 1:
        chances = chances[chances.cumsum(0) - chances < top_p]
    return int(order[torch.multinomial(chances, 1, generator=draw)])
