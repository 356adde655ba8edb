"""Tiny random speech models as folders, with the feature extractors and tokenizers that stand beside them, and sounds.

As transformers draws weights, a decoder is nearly deaf and predicts all tokens alike: here each layer adds as much as
it is given, and predictions are as sharp as logits with a spread of 2.4 make them.
"""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import torch

RATE = 16_000
EMBEDDING = 0.3

SIZES = {
    "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "decoder_start_token_id": 0,
}  # fmt: skip


def whisper(vocabulary: int) -> tuple[Any, Any]:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    config = WhisperConfig(
        **SIZES, vocab_size=vocabulary, num_mel_bins=16, max_source_positions=50, max_target_positions=64,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    model = WhisperForConditionalGeneration(config)
    codes = model.generation_config
    codes._from_model_config = False  # else what is not in the configuration is not read again
    codes.lang_to_id = {"<|en|>": vocabulary - 4, "<|de|>": vocabulary - 3}
    codes.task_to_id, codes.no_timestamps_token_id = {"transcribe": vocabulary - 2}, vocabulary - 1
    return model, WhisperFeatureExtractor(feature_size=16, chunk_length=1)


def moonshine(vocabulary: int) -> tuple[Any, Any]:
    from transformers import MoonshineConfig, MoonshineForConditionalGeneration, Wav2Vec2FeatureExtractor

    config = MoonshineConfig(
        vocab_size=vocabulary, hidden_size=64, intermediate_size=128, encoder_num_hidden_layers=2,
        decoder_num_hidden_layers=2, encoder_num_attention_heads=4, decoder_num_attention_heads=4,
        max_position_embeddings=64, bos_token_id=0, eos_token_id=1, decoder_start_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return MoonshineForConditionalGeneration(config), Wav2Vec2FeatureExtractor(
        feature_size=1, sampling_rate=RATE, do_normalize=False, return_attention_mask=True
    )


def speech_to_text(vocabulary: int) -> tuple[Any, Any]:
    from transformers import Speech2TextConfig, Speech2TextFeatureExtractor, Speech2TextForConditionalGeneration

    config = Speech2TextConfig(
        **SIZES, vocab_size=vocabulary, input_feat_per_channel=16, conv_channels=64, max_source_positions=200,
        scale_embedding=False, max_target_positions=64,
    )  # fmt: skip
    return Speech2TextForConditionalGeneration(config), Speech2TextFeatureExtractor(feature_size=16, num_mel_bins=16)


MAKERS = {"whisper": whisper, "moonshine": moonshine, "speech2text": speech_to_text}


def saved(family: str, folder: Path, tokenizer: Any) -> Path:
    """A folder with weights, preprocessor_config.json and a tokenizer; predictions depend on what is heard."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, extractor = MAKERS[family](len(tokenizer))
        model.eval()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 3:
                torch.nn.init.kaiming_normal_(parameter)
            elif parameter.ndim == 2:
                parameter.data.normal_(std=EMBEDDING if "embed" in name else parameter.shape[1] ** -0.5)
    model.save_pretrained(folder)
    extractor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def sound(number: int, seconds: float) -> np.ndarray:
    """(samples,): syllables, each a chirp, a vowel of three formants or noise; other ones for each number."""
    draw = np.random.default_rng(number)
    made: list[np.ndarray] = []
    while sum(map(len, made)) < seconds * RATE:
        made.append(syllable(draw, np.arange(round(draw.uniform(0.08, 0.25) * RATE)) / RATE))
    return np.concatenate(made)[: round(seconds * RATE)]


def syllable(draw: np.random.Generator, time: np.ndarray) -> np.ndarray:
    """At these times, in seconds: louder, then fainter."""
    pitch, kind = draw.uniform(90, 280), draw.integers(3)
    if kind == 0:
        made = np.sin(2 * np.pi * (pitch * time + draw.uniform(200, 9000) * time**2))
    elif kind == 1:
        formants = draw.uniform((250, 800, 2000), (850, 1800, 3200))
        harmonics = pitch * np.arange(1, 24)
        loud = sum(np.exp(-(((harmonics - each) / 150) ** 2)) for each in formants)
        made = (loud[:, None] * np.sin(2 * np.pi * harmonics[:, None] * time)).sum(0)
    else:
        made = np.diff(draw.normal(size=len(time) + 1)) if draw.integers(2) else draw.normal(size=len(time))
    envelope = np.hanning(len(time) + 2)[1:-1] ** 0.25
    return np.asarray(envelope * made / np.abs(made).max() * draw.uniform(0.1, 0.9))


def write_wave(file: Path, samples: np.ndarray, rate: int = RATE, width: int = 2) -> Path:
    """PCM of so many bytes; of (samples,) or (samples, channels) in [-1, 1]."""
    frames = samples if samples.ndim == 2 else samples[:, None]
    if width == 1:
        content = np.clip(np.round(frames * 128) + 128, 0, 255).astype(np.uint8).tobytes()
    else:
        top = 2.0 ** (8 * width - 1)
        codes = np.clip(np.round(frames * top), -top, top - 1).astype("<i4")
        content = codes.reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(file), "wb") as opened:
        opened.setnchannels(frames.shape[1])
        opened.setsampwidth(width)
        opened.setframerate(rate)
        opened.writeframes(content)
    return file


def recordings(folder: Path, count: int, seconds: float = 1.0, first: int = 0) -> Path:
    """A folder of sounds, all different; of one in five it says what is said."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        own = seconds * (0.7 + 0.3 * (number % 2))
        write_wave(folder / f"{number:03}.wav", sound(number, own))
        if number % 5 == 0:
            (folder / f"{number:03}.txt").write_text("abc def ghi " * (1 + number % 3))
    return folder
