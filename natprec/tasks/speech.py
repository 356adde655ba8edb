"""Encoder-decoders of speech: an encoder hears a recording, and a decoder predicts the text of it token by token.

The decoder is given the text (teacher forcing), after the few tokens that say what it is to do. `COUNTED` is true from
the last of these to the last token of the text; what follows is padding, the token that ends a text. `Samples.length`
counts the decoder's positions, `Samples.beside` the encoder's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from natprec.errors import ModelError
from natprec.tasks.samples import COUNTED, DECODED, Samples
from natprec.tasks.task import Metric, Task, positions_of
from natprec.tasks.text import CausalLanguageModel, where_counted

RATE, SECONDS = 16_000, 4
"""Samples per second of noise in place of a recording, where a model is given those, and how long it is."""

FRAMES = 100
"""Of features per second."""

TOKENS_EACH = 64
"""Positions that a recording's text counts as, before it is known."""


class SpeechModel(Task):
    """It writes what is said in a recording."""

    name = "speech"
    noun = "a speech model"
    family = "AutoModelForSpeechSeq2Seq"
    material = "recordings"
    distortion = "speech-kl"
    reader = "speech"
    convolutions = True
    metrics: tuple[Metric, ...] = tuple(where_counted(metric) for metric in CausalLanguageModel.metrics)

    def inputs(self, samples: Samples) -> dict[str, Any]:
        """Nothing is kept while a text is read whole."""
        tensors = {name: tensor for name, tensor in samples.tensors.items() if name != COUNTED}
        return {**tensors, "use_cache": False}

    def probe(self, model: Any) -> Samples:
        """One recording of noise."""
        return self.made_up(model, 1, TOKENS_EACH)

    def made_up(self, model: Any, count: int, length: int, seed: int | None = None) -> Samples:
        """Noise, and random tokens: at most as many as the decoder has positions."""
        length = min(length, positions(model))
        size = model.get_input_embeddings().weight.shape[0]
        draw = torch.Generator().manual_seed(size if seed is None else seed)
        tensors = _noise(model, count, draw)
        tensors[DECODED] = torch.randint(size, (count, length), generator=draw)
        tensors[COUNTED] = (torch.arange(length) < length - 1).expand(count, -1).clone()
        device = next(model.parameters()).device
        return ready(model, {name: tensor.to(device) for name, tensor in tensors.items()})

    def longest(self, config: Any, processor: Any) -> int | None:
        """Texts are cut to the decoder's positions."""
        return None


def positions(model: Any) -> int:
    """Of the decoder."""
    config = model.config
    return int(getattr(config, "max_target_positions", None) or positions_of(config) or TOKENS_EACH)


def encoded(model: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What the encoder makes of recordings, as transformers returns it."""
    heard = {name: tensor for name, tensor in tensors.items() if name not in (COUNTED, DECODED)}
    return model.get_encoder()(**heard)


@torch.no_grad()
def ready(model: Any, tensors: Mapping[str, Tensor]) -> Samples:
    """Recordings and their texts as a model is given them; it runs on one of them, to count positions.

    It runs as a whole: a packed model of transformers unpacks itself when it is called, and its encoder alone does not.

    Args:
        tensors: what the encoder takes, `DECODED` (samples, time) and `COUNTED`.
    """
    if tensors[DECODED].is_meta:
        return Samples(tensors, tensors[DECODED].shape[1])
    samples = Samples(tensors, tensors[DECODED].shape[1])
    return replace(samples, beside=SPEECH.forward(model, samples[:1]).encoder_last_hidden_state.shape[1])


def _noise(model: Any, count: int, draw: torch.Generator) -> dict[str, Tensor]:
    """What the encoder is given of recordings, by what its configuration says.

    Raises:
        ModelError: it does not say.
    """
    config = model.config
    bins, places = getattr(config, "num_mel_bins", None), getattr(config, "max_source_positions", None)
    features = getattr(config, "input_feat_per_channel", None)
    if model.main_input_name == "input_values":
        shape: tuple[int, ...] = (count, SECONDS * RATE)
    elif features:
        shape = (count, SECONDS * FRAMES, features * getattr(config, "input_channels", 1))
    elif bins and places:
        shape = (count, bins, 2 * places)
    else:
        raise ModelError(
            f"model {type(model).__name__} does not say what its encoder is given of a recording; natprec takes speech "
            "models that read waveforms or spectrograms as Whisper, Moonshine and Speech2Text do"
        )
    return {model.main_input_name: torch.randn(shape, generator=draw)}


SPEECH: Task = SpeechModel()
