"""WAV files of every kind that is read, and those that are refused by name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from natprec.data.waves import read_wave, resampled
from natprec.errors import InputError
from tests.speech_models import RATE, sound, write_wave


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_pcm_of_any_width_is_read_to_half_a_step(tmp_path: Path, width: int) -> None:
    made = sound(3, 0.2)
    read = read_wave(write_wave(tmp_path / "a.wav", made, width=width))
    assert read.dtype == np.float32
    assert np.abs(read - made).max() <= max(0.5 / 2 ** (8 * width - 1), 1e-7) * 1.01


def test_channels_are_their_mean(tmp_path: Path) -> None:
    left, right = sound(1, 0.1), sound(2, 0.1)
    read = read_wave(write_wave(tmp_path / "a.wav", np.stack([left, right], 1), width=3))
    assert np.abs(read - (left + right) / 2).max() < 1e-6


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A file of chunks; the last one says that it has `size` bytes."""
    sizes = [len(body) for _, body in chunks]
    sizes[-1] = sizes[-1] if size is None else size
    parts = [name + struct.pack("<I", own) + body for (name, body), own in zip(chunks, sizes, strict=True)]
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, parts))) + b"WAVE" + b"".join(parts)


def described(code: int, bits: int, channels: int = 1, more: bytes = b"") -> tuple[bytes, bytes]:
    frame = channels * bits // 8
    return b"fmt ", struct.pack("<HHIIHH", code, channels, RATE, RATE * frame, frame, bits) + more


def test_floats_extended_files_and_streams_are_read(tmp_path: Path) -> None:
    made, file = sound(5, 0.1), tmp_path / "a.wav"
    file.write_bytes(riff(described(3, 32), (b"LIST", b"abcd"), (b"data", made.astype("<f4").tobytes())))
    assert np.array_equal(read_wave(file), made.astype(np.float32))
    codes = np.round(made * 2**15).astype("<i2")
    extended = described(0xFFFE, 16, more=struct.pack("<HHIH", 22, 16, 4, 1) + bytes(14))
    file.write_bytes(riff(extended, (b"data", codes.tobytes())))
    assert np.array_equal(read_wave(file), (codes / 2**15).astype(np.float32))
    file.write_bytes(riff(described(1, 16), (b"data", codes.tobytes()), size=0xFFFFFFFF))
    assert np.array_equal(read_wave(file), (codes / 2**15).astype(np.float32))


@pytest.mark.parametrize(("rate", "wanted"), [(8000, 16000), (44100, 16000), (48000, 16000)])
def test_resampling_keeps_a_tone(rate: int, wanted: int) -> None:
    tone = lambda at: np.sin(2 * np.pi * 440 * np.arange(at) / at)  # noqa: E731 - one second of it
    found = resampled(tone(rate), rate, wanted)
    assert len(found) == wanted
    assert np.abs(found - tone(wanted)).max() < 1e-5


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no WAV file"),
        (b"fLaC" + bytes(40), "is no WAV file"),
        (riff(described(1, 16)), "has no samples"),
        (riff(described(1, 16), (b"data", b"")), "holds no samples"),
        (riff((b"data", bytes(8))), "has samples before it says what they are"),
        (riff((b"LIST", bytes(8))), "does not say what its samples are"),
        (riff(described(1, 16), (b"data", bytes(8)), size=80), "is cut off: it has 8 of 80 bytes"),
        (riff(described(1, 16), (b"data", bytes(7))), "ends within a sample"),
        (riff(described(6, 8), (b"data", bytes(8))), "has samples of code 6 with 8 bits"),
        (riff(described(1, 12), (b"data", bytes(8))), "has samples of code 1 with 12 bits"),
        (riff(described(1, 16, channels=0), (b"data", bytes(8))), "has 0 channels"),
        (riff(described(3, 32), (b"data", struct.pack("<f", float("nan")))), "holds NaN or Inf"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "bad.wav"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_wave(file)
    assert words in str(caught.value)
    assert str(file) in str(caught.value)


def test_no_beginning_of_a_file_is_read_as_the_whole(tmp_path: Path) -> None:
    whole = write_wave(tmp_path / "whole.wav", sound(1, 0.01)).read_bytes()
    file = tmp_path / "cut.wav"
    for size in range(0, len(whole), 7):
        file.write_bytes(whole[:size])
        with pytest.raises(InputError):
            read_wave(file)
