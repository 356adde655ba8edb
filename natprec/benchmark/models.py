"""Both models behind lm-eval's interface, in one pass: each batch of requests goes through one and then the other.

lm-eval tokenizes and counts; what is replaced is how a batch is run. So the original's answers, the checkpoint's, and
the KL between their predictions on the answers' tokens come from the same forwards. Several processes take batches in
turn, and each has all answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from natprec.utils.progress import Stages
from natprec.utils.workers import Workers

Request = tuple[tuple[str, str], list[int], list[int]]
"""((context, continuation), tokens of the context, tokens of the continuation)."""

Key = tuple[tuple[int, ...], tuple[int, ...]]
Found = tuple[float, bool]
"""Log-likelihood of a continuation, nats, and whether each of its tokens is the likeliest."""


class Answer(NamedTuple):
    """Of both models to one request; `kl`: of the continuation's tokens, Σ KL(original ‖ checkpoint) in nats."""

    own: float
    own_greedy: bool
    theirs: float
    theirs_greedy: bool
    kl: float


BATCH_TOKENS = 1024
"""In a batch, padding included: logits of both models are in memory."""


class BothModels(HFLM):  # type: ignore[misc]
    """The original for lm-eval; the checkpoint's results are kept in `found`.

    Attributes:
        found: request → the checkpoint's result.
        kl: request → Σ KL(original ‖ checkpoint) over the continuation's tokens, nats.
    """

    def __init__(
        self, original: Any, checkpoint: Any, tokenizer: Any, stages: Stages, workers: Workers | None = None
    ) -> None:
        super().__init__(pretrained=original, tokenizer=tokenizer, batch_size=1)
        self.checkpoint, self._workers = checkpoint, workers or Workers()
        self.name = ""
        self._stages = stages
        self.found: dict[Key, Found] = {}
        self.kl: dict[Key, float] = {}

    @property
    def kl_mean(self) -> float | None:
        """Nats per token of the answers so far."""
        tokens = sum(len(continuation) for _, continuation in self.kl)
        return sum(self.kl.values()) / tokens if tokens else None

    def begin(self, name: str) -> None:
        """Forget what was found; what comes is of this task."""
        self.name = name
        self.found.clear()
        self.kl.clear()

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: list[Request], disable_tqdm: bool = False, **_: Any) -> list[Found]:
        """See lm-eval; longest first, so that memory runs out at once or not at all."""
        workers, own = self._workers, dict[int, Answer]()
        batches = list(batched(requests))[workers.rank :: workers.size]  # neighbours are about as long
        with self._stages.stage(self.name, sum(map(len, batches))) as advance:
            for batch in batches:
                for index, answer in zip(batch, self._run([requests[i] for i in batch]), strict=True):
                    own[index] = answer
                    advance("")
        results: dict[int, Answer] = {}
        for content in workers.all_bytes(json.dumps(list(own.items())).encode()):
            results |= {index: Answer(*answer) for index, answer in json.loads(content)}
        for index, request in enumerate(requests):
            key, answer = (tuple(request[1]), tuple(request[2])), results[index]
            self.found[key], self.kl[key] = (answer.theirs, answer.theirs_greedy), answer.kl
        return [(results[index].own, results[index].own_greedy) for index in range(len(requests))]

    def _run(self, requests: list[Request]) -> list[Answer]:
        texts = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        ids = torch.zeros(len(texts), max(map(len, texts)) - 1, dtype=torch.long, device=self.device)
        for row, tokens in zip(ids, texts, strict=True):
            row[: len(tokens) - 1] = torch.tensor(tokens[:-1])
        own, theirs = (model(ids).logits for model in (self.model, self.checkpoint))
        return [self._judged(*each) for each in zip(requests, texts, own, theirs, strict=True)]

    def _judged(self, request: Request, text: list[int], own: Tensor, theirs: Tensor) -> Answer:
        continuation = request[2]
        part = slice(len(text) - 1 - len(continuation), len(text) - 1)
        before, after = (torch.log_softmax(each[part].float(), -1) for each in (own, theirs))
        wanted = torch.tensor(continuation, device=before.device)
        kl = max(0.0, float((before.exp() * (before - after)).double().sum()))
        return Answer(*_result(before, wanted), *_result(after, wanted), kl)


class Remembered(HFLM):  # type: ignore[misc]
    """The checkpoint for lm-eval: likelihoods are those that `BothModels` has found; text it writes itself."""

    def __init__(self, both: BothModels, tokenizer: Any) -> None:
        super().__init__(pretrained=both.model, tokenizer=tokenizer, batch_size=1)
        self._model, self._both = both.checkpoint, both

    def _loglikelihood_tokens(self, requests: list[Request], disable_tqdm: bool = False, **_: Any) -> list[Found]:
        return [self._both.found[tuple(context), tuple(continuation)] for _, context, continuation in requests]


def batched(requests: list[Request]) -> Iterator[list[int]]:
    """Places of requests, the longest first, in batches of at most `BATCH_TOKENS`, padding included."""
    order = sorted(range(len(requests)), key=lambda place: -_length(requests[place]))
    batch: list[int] = []
    for place in order:
        if batch and (len(batch) + 1) * _length(requests[batch[0]]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _length(request: Request) -> int:
    return len(request[1]) + len(request[2])


def _result(logprobs: Tensor, wanted: Tensor) -> Found:
    """(log-likelihood, whether greedy) of tokens under log-probabilities (tokens, vocabulary)."""
    likely = bool((logprobs.argmax(-1) == wanted).all())
    return float(logprobs.gather(1, wanted[:, None]).sum()), likely
