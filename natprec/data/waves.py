"""WAV files: read whole, as samples in [-1, 1] of one channel at one rate.

A file is RIFF chunks: `fmt ` says how many channels, samples per second and bits there are, `data` holds the samples
(Multimedia Programming Interface and Data Specifications 1.0, IBM and Microsoft 1991; the extended `fmt ` of 24 bits:
Multiple Channel Audio Data and WAVE Files, Microsoft 2001). The standard library's `wave` reads neither floats nor,
before Python 3.12, extended files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from natprec.errors import InputError

PCM, FLOAT, EXTENDED = 1, 3, 0xFFFE
"""Codes of `fmt `; an extended one has the code proper in its sub-format."""

UNKNOWN_SIZE = 0xFFFFFFFF
"""Of a chunk that a program wrote before it knew the size: it goes to the file's end."""

Wave = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Format:
    """What `fmt ` says.

    Attributes:
        rate: samples per second.
    """

    code: int
    channels: int
    rate: int
    bits: int


def read_wave(file: Path, rate: int | None = None) -> Wave:
    """(samples,): the mean of all channels.

    Args:
        rate: samples per second that are wanted; default: the file's own.
    Raises:
        InputError: it is no such file, damaged, of a kind that is not read, or holds no samples; names it.
    """
    content = _content(file)
    described, data = _chunks(content, file)
    frames = _decoded(described, data, file).reshape(-1, described.channels)
    if not len(frames):
        raise _bad(file, "holds no samples")
    if not np.isfinite(frames).all():
        raise _bad(file, "holds NaN or Inf")
    return resampled(frames.mean(1), described.rate, rate or described.rate)


def resampled(wave: npt.NDArray[np.floating], rate: int, wanted: int) -> Wave:
    """At another rate, by its spectrum: what the lower of the two rates cannot hold is left out.

    >>> resampled(np.ones(8), 4, 2).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    if rate == wanted:
        return wave.astype(np.float32)
    count = max(1, round(len(wave) * wanted / rate))
    return (np.fft.irfft(np.fft.rfft(wave), count) * (count / len(wave))).astype(np.float32)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {str(file)!r}: {error.strerror}; check the file and its permissions") from error


def _chunks(content: bytes, file: Path) -> tuple[_Format, bytes]:
    """What `fmt ` says, and `data`."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        raise _bad(file, "is no WAV file")
    described, place = None, 12
    while place + 8 <= len(content):
        name, size = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        body = content[place + 8 : place + 8 + size]
        if name == b"fmt " and len(body) >= 16:
            described = _described(body, file)
        if name == b"data":
            if described is None:
                raise _bad(file, "has samples before it says what they are")
            if len(body) < size != UNKNOWN_SIZE:
                raise _bad(file, f"is cut off: it has {len(body)} of {size} bytes of samples")
            return described, body
        place += 8 + size + size % 2
    raise _bad(file, "has no samples" if described else "does not say what its samples are")


def _described(body: bytes, file: Path) -> _Format:
    code, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", body[:16])
    if code == EXTENDED and len(body) >= 26:
        code = int.from_bytes(body[24:26], "little")
    if (code, bits) not in {*((PCM, each) for each in (8, 16, 24, 32)), *((FLOAT, each) for each in (32, 64))}:
        raise _bad(file, f"has samples of code {code} with {bits} bits, and PCM of 8, 16, 24 or 32 and floats are read")
    if not channels or not rate or frame != channels * bits // 8:
        raise _bad(file, f"has {channels} channels of {bits} bits in {frame} bytes, {rate} times a second")
    return _Format(code, channels, rate, bits)


def _decoded(described: _Format, data: bytes, file: Path) -> npt.NDArray[np.float64]:
    """(samples of all channels,), in [-1, 1]."""
    width = described.bits // 8
    if len(data) % (width * described.channels):
        raise _bad(file, "ends within a sample")
    if described.code == FLOAT:
        return np.frombuffer(data, f"<f{width}").astype(np.float64)
    if width == 1:
        return np.frombuffer(data, np.uint8) / 128.0 - 1.0
    padded = np.zeros((len(data) // width, 4), np.uint8)
    padded[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    values = padded.view("<i4")[:, 0] / 2.0**31
    return np.asarray(values, dtype=np.float64)


def _bad(file: Path, why: str) -> InputError:
    return InputError(f"recording {str(file)!r} {why}; repair it or take it out of the folder")
