"""What a model is for, and what follows from that: the class that loads it, how it is called, what is compared.

A checkpoint says which task it is of: `natprec.models.model_files.task_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Task:
    """One use of a model.

    Attributes:
        name: in the jobs of `natprec compare`.
        noun: in messages, with its article.
        family: the class of transformers that loads such a model; of an encoder its body, without a head.
        distortion: name of the one that is taken unless another is asked for.
        predicts: whether its output predicts the next token: such a model can write its own text and keeps keys and
            values, distortions read its logits, and perplexity and top-1 agreement are reported.
    """

    name: str
    noun: str
    family: str
    distortion: str
    predicts: bool

    @property
    def loader(self) -> Any:
        """The class `family`."""
        import transformers

        return getattr(transformers, self.family)

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the model's forward is called with for token ids (batch, time)."""
        return {"input_ids": ids, "use_cache": False} if self.predicts else {"input_ids": ids}


CAUSAL = Task("causal", "a causal language model", "AutoModelForCausalLM", "kl", predicts=True)
ENCODER = Task("encoder", "an encoder", "AutoModel", "embedding", predicts=False)
"""It turns text into vectors, and each token sees all others."""
