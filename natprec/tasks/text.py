"""Models of text: those that predict the next token, and those that turn text into vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from natprec.tasks.samples import COUNTED, Samples
from natprec.tasks.task import Metric, Task

PROBE_TOKENS = 8


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """-log p of each next token of the text: (batch, time - 1), nats.

    Args:
        logits: (batch, time, vocabulary).
        ids: (batch, time).
    """
    before = logits[:, :-1].float()
    return before.logsumexp(-1) - before.gather(-1, ids[:, 1:, None]).squeeze(-1)


def _perplexity(losses: np.ndarray) -> float:
    return float(np.exp(losses.mean()))


def where_counted(metric: Metric) -> Metric:
    """A figure of the positions that count."""

    def values(one: Tensor, two: Tensor, samples: Samples) -> Tensor:
        found, counted = metric.values(one, two, samples), samples.tensors.get(COUNTED)
        return found if counted is None else found.masked_fill(~counted[:, : found.shape[1]], torch.nan)

    def total(found: np.ndarray) -> float:
        left_out = np.isnan(found)
        return metric.total(found[~left_out] if left_out.any() else found)

    return Metric(metric.name, values, total)


class _TextTask(Task):
    """What all models of text have in common: an embedding of tokens."""

    reader = "text"

    def probe(self, model: Any) -> Samples:
        """(1, tokens): the first ones of the vocabulary."""
        ids = torch.arange(PROBE_TOKENS, device=next(model.parameters()).device) % _vocabulary(model)
        return Samples.text(ids.unsqueeze(0))

    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """Random tokens."""
        size = _vocabulary(model)
        draw = torch.Generator().manual_seed(size if seed is None else seed)
        return Samples.text(torch.randint(size, (count, length), generator=draw)).to(next(model.parameters()).device)


class CausalLanguageModel(_TextTask):
    """It predicts the next token."""

    name = "causal"
    noun = "a causal language model"
    family = "AutoModelForCausalLM"
    distortion = "kl"
    generates = True
    metrics: tuple[Metric, ...] = (
        Metric("perplexity_reference", lambda one, _, text: token_losses(one, text.ids).double(), _perplexity),
        Metric("perplexity_quantized", lambda _, two, text: token_losses(two, text.ids).double(), _perplexity),
        Metric(
            "top1_agreement",
            lambda one, two, _: (one.argmax(-1) == two.argmax(-1)).double(),
            lambda same: float(same.mean()),
        ),
    )

    def inputs(self, samples: Samples) -> dict[str, Any]:
        """Nothing is kept while a text is read whole."""
        return {**samples.tensors, "use_cache": False}


class TextEncoder(_TextTask):
    """It turns text into vectors, and each token sees all others; without a head."""

    name = "encoder"
    noun = "an encoder"
    family = "AutoModel"
    distortion = "embedding"

    def part(self, model: Any) -> Any:
        """Its body."""
        return model.base_model

    def longest(self, config: Any, processor: Any) -> int | None:
        """Some (RoBERTa's) have positions that no token gets, which the tokenizer does not count."""
        limit = super().longest(config, processor)
        return limit and min(limit, getattr(processor, "model_max_length", limit))

    def does_without(self, model: Any, missing: Iterable[str]) -> bool:
        """A pooler: checkpoints of masked-LM models lack it, and embeddings do not use it."""
        only = all(name.startswith("pooler.") for name in missing) and hasattr(model, "pooler")
        if only:
            model.pooler = None
        return only


def _vocabulary(model: Any) -> int:
    size: int = model.get_input_embeddings().weight.shape[0]
    return size


CAUSAL: Task = CausalLanguageModel()
ENCODER: Task = TextEncoder()
