"""Samples with pictures: a question about each, by the model's own processor, and what the model answers.

The processor turns a prompt and a picture into token ids and tensors that only it and the model understand. All
pictures have one size, so that those tensors have one shape; of all samples they are stacked (see
`natprec.tasks.vision_language`). The answer is the model's own text, at temperature 1 from its whole distribution; of a
model that cannot write, since its weights are on disk, text that is given stands in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from natprec.data.chat import has_template, rendered
from natprec.data.pictures import common_size, find_pictures, of_size
from natprec.errors import InputError, ModelError, NatprecError, first_line
from natprec.tasks import Samples
from natprec.tasks.samples import COUNTED, TOKENS
from natprec.tasks.vision_language import not_text
from natprec.utils.records import public_name
from natprec.utils.seeds import derived

QUESTIONS = (
    "Describe this picture.",
    "What can be seen here, and where?",
    "Read all text in the picture; if there is none, say so.",
    "Which colours and shapes does the picture have?",
)
"""One after the other for batches of pictures."""

BATCH = 4
"""Pictures that are answered together."""

LEAST = 16
"""Tokens of an answer."""

Prompt = dict[str, Tensor]
"""What the processor makes of a picture and a question."""


@dataclass(frozen=True)
class PicturedText:
    """A folder of pictures that a model can be asked about.

    Attributes:
        name: of the folder, without its place.
        processor: the model's, of transformers.
        files: the pictures.
        size: (width, height) that they are brought to, pixels.
    """

    name: str
    processor: Any
    files: tuple[Path, ...]
    size: tuple[int, int]

    @classmethod
    def of(cls, folder: str, processor: Any) -> PicturedText:
        """Find and read the pictures.

        Raises:
            InputError: none, or one that cannot be read.
        """
        files = find_pictures(folder)
        return cls(public_name(folder), processor, tuple(files), common_size(files))

    def probe(self) -> Samples:
        """One picture with its question."""
        prompt = self._prompt(self.files[0], QUESTIONS[0])
        return _samples([prompt], prompt[TOKENS])

    def refuse_short(self, length: int) -> None:
        """Refuse samples of so few positions that a picture and a question leave no room for an answer.

        Raises:
            InputError: says how many would do.
        """
        asked = max(self._prompt(self.files[0], question)[TOKENS].shape[1] for question in QUESTIONS)
        if length < asked + LEAST:
            raise InputError(
                f"sequence-length {length}: a picture and a question take {asked} positions, and an answer {LEAST} or "
                f"more; use --sequence-length {-(-(asked + 4 * LEAST) // 64) * 64}"
            )

    def samples(
        self,
        model: Any,
        files: Sequence[Path],
        count: int,
        length: int,
        seed: int,
        answers: Tensor | None = None,
        progress: Callable[[str], None] = lambda step: None,
    ) -> Samples:
        """Pictures in their order, again from the first where there are too few, each time with another answer.

        Args:
            count: of samples; `length`: positions of each.
            answers: (count, length) tokens that stand for what the model would say.
            progress: called once for each batch of `BATCH`.
        Raises:
            InputError: no samples are wanted.
            ModelError: the model's predictions are not numbers.
        """
        found: Samples | None = None
        for start in range(0, count, BATCH):
            question = QUESTIONS[start // BATCH % len(QUESTIONS)]
            chosen = [files[number % len(files)] for number in range(start, min(start + BATCH, count))]
            prompts = [self._prompt(file, question) for file in chosen]
            given = None if answers is None else answers[start : start + len(chosen)]
            some = _answered(model, prompts, length, derived(seed, start), given)
            found = some if found is None else found.followed_by(some)
            progress("")
        if found is None:
            raise InputError(f"{count} samples with pictures are no data; raise --tokens")
        return found

    def _prompt(self, file: Path, question: str) -> Prompt:
        try:
            made = self.processor(
                text=_asked(self.processor, question), images=[of_size(file, self.size)], return_tensors="pt"
            )
        except NatprecError:
            raise
        except Exception as error:  # whatever a processor raises
            raise ModelError(
                f"the processor {type(self.processor).__name__} cannot be given a picture ({first_line(error)}); "
                "measure without --images"
            ) from error
        return {name: value for name, value in made.items() if isinstance(value, Tensor) and name != "attention_mask"}


def _asked(processor: Any, question: str) -> str:
    """A question about a picture, by the chat template if there is one."""
    if has_template(processor):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        return rendered(processor, [{"role": "user", "content": content}], add_generation_prompt=True)
    mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", None) or "<image>"
    return f"{mark}\n{question}\n"


def _answered(model: Any, prompts: list[Prompt], length: int, seed: int, answers: Tensor | None) -> Samples:
    asked = torch.cat([prompt[TOKENS] for prompt in prompts])
    wanted = length - asked.shape[1]
    if answers is not None:
        return _samples(prompts, torch.cat([asked, answers[:, -wanted:].to(asked.device)], dim=1))
    device = next(model.parameters()).device
    given = {name: torch.cat([prompt[name] for prompt in prompts]).to(device) for name in prompts[0]}
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            written = model.generate(
                **given, attention_mask=torch.ones_like(given[TOKENS]), max_new_tokens=wanted, min_new_tokens=wanted,
                do_sample=True, num_beams=1, temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0,
                pad_token_id=0, suppress_tokens=not_text(model.config) or None,
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the model cannot answer a question about a picture ({first_line(error)}); check the checkpoint, or "
                "measure without --images"
            ) from error
    return _samples(prompts, written[:, :length].cpu())


def _samples(prompts: list[Prompt], ids: Tensor) -> Samples:
    """Prompts, all of one length, with what follows them: (samples, length) token ids."""
    asked = prompts[0][TOKENS].shape
    tensors: dict[str, Tensor] = {TOKENS: ids, COUNTED: (torch.arange(ids.shape[1]) >= asked[1] - 1).expand(ids.shape)}
    for name, first in prompts[0].items():
        stacked = torch.stack([prompt[name] for prompt in prompts])
        if name == TOKENS:
            continue
        if first.shape == asked:  # one for each position: what follows is text
            stacked = torch.nn.functional.pad(stacked[:, 0], (0, ids.shape[1] - asked[1]))
        tensors[name] = stacked
    return Samples({name: tensor.contiguous() for name, tensor in tensors.items()}, ids.shape[1])
