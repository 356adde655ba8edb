"""The text that a speech model's decoder is given: the tokens that say what it is to do, and what it writes itself.

Of Whisper these are the language, which it hears, and that it is to transcribe, without times (Radford et al. 2022,
arXiv:2212.04356); of other models the token that a text begins with. They are in generation_config.json, as are the
tokens that are never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.tasks.samples import DECODED
from natprec.tasks.speech import encoded, positions

TASK = "transcribe"


@dataclass(frozen=True)
class Prompted:
    """A prompt, and a text without the token that ends it."""

    prompt: tuple[int, ...]
    text: tuple[int, ...]

    def __len__(self) -> int:
        """With one token that ends it."""
        return len(self.prompt) + len(self.text) + 1

    def within(self, most: int) -> Prompted:
        """Cut so that it has no more positions."""
        return Prompted(self.prompt, self.text[: max(0, most - len(self.prompt) - 1)])

    def padded(self, length: int, end: int) -> list[int]:
        """So many tokens, the last ones of which end the text."""
        own = [*self.prompt, *self.text]
        return own + [end] * (length - len(own))

    def counted(self, length: int) -> list[bool]:
        """Of each position whether its prediction counts: of the text's tokens and the one that ends it."""
        first, last = len(self.prompt) - 1, len(self.prompt) + len(self.text) - 1
        return [first <= place <= last for place in range(length)]


def prompted(model: Any, heard: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    """The prompt of each recording of a batch."""
    config = model.generation_config
    start = _first(config.decoder_start_token_id, model.config.decoder_start_token_id)
    count = len(next(iter(heard.values())))
    languages = getattr(config, "lang_to_id", None) or {}
    tasks = getattr(config, "task_to_id", None) or {}
    forced = getattr(config, "forced_bos_token_id", None)
    rest = [tasks[TASK]] if languages and TASK in tasks else []
    rest += [config.no_timestamps_token_id] if getattr(config, "no_timestamps_token_id", None) is not None else []
    if not languages:
        own = [start] + ([forced] if forced is not None else []) + rest
        return [tuple(own)] * count
    ids = torch.tensor(sorted(languages.values()), device=next(iter(heard.values())).device)
    with torch.no_grad():
        said = model(**heard, **{DECODED: ids.new_full((count, 1), start)}, use_cache=False).logits[:, -1]
    found = ids[said[:, ids].argmax(-1)]
    return [(start, language, *rest) for language in found.tolist()]


@torch.no_grad()
def written(
    model: Any, heard: Mapping[str, Tensor], prompts: Sequence[tuple[int, ...]], limits: Sequence[int]
) -> list[list[int]]:
    """What a model writes of each recording of a batch, the likeliest token each time.

    Args:
        prompts: of one length.
        limits: tokens that each may have.
    """
    ends, never, never_first = (
        set(eos_of(model)),
        _never(model, "suppress_tokens"),
        _never(model, "begin_suppress_tokens"),
    )
    most = min(max(limits), _room(model, len(prompts[0])))
    device = next(iter(heard.values())).device
    state = {"encoder_outputs": encoded(model, heard)}
    state |= {"attention_mask": heard["attention_mask"]} if "attention_mask" in heard else {}
    ids, rows, past = torch.tensor(prompts, device=device), [list[int]() for _ in prompts], None
    over = [limit < 1 for limit in limits]
    for step in range(most):
        output = model(**state, **{DECODED: ids}, past_key_values=past, use_cache=True)
        past, said = output.past_key_values, output.logits[:, -1].clone()
        said[:, never if step else never + never_first] = -torch.inf
        ids = said.argmax(-1, keepdim=True)
        for number, token in enumerate(ids.flatten().tolist()):
            over[number] = over[number] or token in ends or len(rows[number]) >= limits[number]
            if not over[number]:
                rows[number].append(token)
        if all(over):
            break
    return rows


def eos_of(model: Any) -> list[int]:
    """Tokens that end a text.

    Raises:
        ModelError: there is none.
    """
    for config in (model.generation_config, model.config):
        found = getattr(config, "eos_token_id", None)
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    raise ModelError(
        f"model {type(model).__name__} names no token that ends a text; add eos_token_id to its generation_config.json"
    )


def _room(model: Any, prompt: int) -> int:
    """Tokens that the decoder has positions for behind the prompt, and before the end."""
    return positions(model) - prompt - 1


def _never(model: Any, name: str) -> list[int]:
    """Tokens that are not written, by the entry of generation_config.json."""
    return list(getattr(model.generation_config, name, None) or [])


def _first(*values: int | None) -> int:
    return next(value for value in values if value is not None)
