"""A conversation with a checkpoint: the turns so far, cut from the front where the context would not hold them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from natprec.data.chat import Turn
from natprec.errors import InputError
from natprec.runtime.generate import Generation, Sampling, prompt_ids, write
from natprec.runtime.load import Runnable

ROOM = 64
"""Tokens that an answer has at least, before turns are cut."""


@dataclass
class Chat:
    """Turns in their order, and how the model's are drawn.

    Attributes:
        system: what the model is told first; never cut.
        cut: turns that were left out, since the context was full.
    """

    runnable: Runnable
    max_new_tokens: int
    sampling: Sampling
    system: str | None = None
    turns: list[Turn] = field(default_factory=list)
    cut: int = 0

    def say(self, text: str, on_text: Callable[[str], None] = lambda _: None) -> Generation:
        """The model's answer to what the user says; both are remembered.

        Raises:
            InputError: the text alone does not fit into the context.
        """
        turns = [*self.turns, {"role": "user", "content": text}]
        ids = prompt_ids(self.runnable, self._with_system(turns))
        context = self.runnable.context
        while context is not None and len(ids) + min(ROOM, self.max_new_tokens) > context and len(turns) > 1:
            turns, self.cut = turns[2:], self.cut + 2  # a question and its answer
            ids = prompt_ids(self.runnable, self._with_system(turns))
        if context is not None and len(ids) >= context:
            raise InputError(f"that has {len(ids)} tokens, and the context of this model {context}; say less")
        found = write(self.runnable, ids, self.max_new_tokens, self.sampling, on_text)
        self.turns = [*turns, {"role": "assistant", "content": found.text}]
        return found

    def _with_system(self, turns: list[Turn]) -> list[Turn]:
        return [{"role": "system", "content": self.system}, *turns] if self.system else turns
