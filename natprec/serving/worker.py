"""The one thread that runs the model: requests wait in line, none is lost, and one that nobody waits for ends early."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from natprec.errors import InputError, ModelError
from natprec.runtime.generate import Generation, prompt_ids, write
from natprec.runtime.load import Runnable
from natprec.serving.protocol import Asked, RequestError


def completed(
    runnable: Runnable, asked: Asked, prompt: Any, on_text: Callable[[str], None], cancelled: Callable[[], bool]
) -> tuple[Generation, list[int]]:
    """What the model writes, and the tokens of the prompt.

    Raises:
        RequestError: the prompt cannot be read, or leaves no room.
    """
    ids = read_prompt(runnable, asked, prompt)
    if asked.max_tokens == 0:
        return Generation("", (), len(ids), 0.0, 0.0, False), ids
    try:
        return write(runnable, ids, asked.max_tokens, asked.sampling, on_text, cancelled), ids
    except InputError as error:
        raise RequestError(str(error), code="context_length_exceeded") from error


def read_prompt(runnable: Runnable, asked: Asked, prompt: Any) -> list[int]:
    """The prompt's token ids.

    Raises:
        RequestError: it is empty, or has ids that are no tokens.
    """
    if isinstance(prompt, list) and not asked.chat:
        size = runnable.model.config.get_text_config().vocab_size
        if not all(0 <= token < size for token in prompt):
            raise RequestError(f"'prompt' has token ids outside of 0 to {size - 1}")
        return prompt
    try:
        ids = prompt_ids(runnable, prompt) if asked.chat else list(runnable.tokenizer(prompt).input_ids)
    except (InputError, ModelError) as error:
        raise RequestError(str(error)) from error
    if not ids:
        raise RequestError("'prompt' is empty")
    return ids


@torch.inference_mode()
def scored(runnable: Runnable, ids: list[int], start: int, top: int) -> dict[str, Any]:
    """Log-probabilities of tokens from a place on, each given those before it; of the first there is none."""
    output = runnable(input_ids=torch.tensor([ids], device=runnable.device), use_cache=False, return_dict=True)
    chances = output.logits[0].float().log_softmax(-1).cpu()
    text = [runnable.tokenizer.decode([token]) for token in ids]
    values: list[float | None] = []
    likeliest: list[dict[str, float] | None] = []
    for place in range(start, len(ids)):
        if place == 0:
            values.append(None)
            likeliest.append(None)
            continue
        row = chances[place - 1]
        value = float(row[ids[place]])
        values.append(value if math.isfinite(value) else -9999.0)
        best = {runnable.tokenizer.decode([int(token)]): float(row[token]) for token in row.topk(max(1, top)).indices}
        likeliest.append(best)
    offsets, length = [], 0
    for piece in text:
        offsets.append(length)
        length += len(piece)
    return {
        "tokens": text[start:], "token_logprobs": values, "top_logprobs": likeliest, "text_offset": offsets[start:],
    }  # fmt: skip
