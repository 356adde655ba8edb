"""Which text was measured on, so that none of it judges (T6): files by their digest, windows by their pieces.

A path is no identity: a file has several names, and copies. Two sources are one text if their bytes have one digest, or
if they are one dataset of the hub; then the part that measuring leaves out judges. Texts may also agree in part (an
excerpt, another format, other line ends, windows of another length): of what was measured on, each run of `PIECE`
tokens is kept as a hash, and a window that contains one of them does not judge. Shorter windows have no such runs. Of
an image all that the model is given makes one hash, of a recording what is heard, without the text and without silence
at the end; a folder is known by the contents of its files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from natprec.data.folders import contents
from natprec.data.sources import TEXT_LIMIT
from natprec.errors import InputError
from natprec.tasks import Samples
from natprec.tasks.samples import DECODED, TOKENS
from natprec.utils.records import public_name

PIECE = 32
"""Tokens; so many in a row seldom recur by chance."""

Pieces = npt.NDArray[np.uint64]
"""Hashes, sorted, each once."""

NO_PIECES: Pieces = np.zeros(0, dtype=np.uint64)

_STEP = np.uint64(0x9E3779B97F4A7C15)


def source_digest(source: str) -> str | None:
    """16 hex digits of sha256 over a file's bytes, at most `TEXT_LIMIT` of them; None for a hub dataset.

    Of a folder over those of its pictures or recordings, wherever in it they are.
    """
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        return hashlib.sha256(b"".join(contents(path))).hexdigest()[:16]
    if not os.path.isfile(path):
        return None
    digest, left = hashlib.sha256(), TEXT_LIMIT
    with path.open("rb") as file:
        while left and (part := file.read(min(left, 2**20))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()[:16]


def same_text(name: str, digest: str | None, source: str) -> bool:
    """Whether a source is the text of this public name and `source_digest`."""
    own = source_digest(source)
    return public_name(source) == name if digest is own is None else digest == own


def pieces_of(samples: Samples) -> Pieces:
    """The pieces of a whole text; of samples that are no text one for each."""
    return np.unique(_hashes(samples.ids) if TOKENS in samples.tensors else _whole(samples))


def unseen_samples(samples: Samples, seen: Pieces, least: int | None, what: str, remedy: str) -> Samples:
    """The samples, which are no text, that were not seen.

    Args:
        least: that are enough; default: one. `what` they are, and the `remedy` where there are fewer, are for messages.
    Raises:
        InputError: there are fewer.
    """
    new, count = np.flatnonzero(~np.isin(_whole(samples), seen)), len(samples)
    if len(new) < (least or 1):
        raise InputError(
            f"{count - len(new)} of {count} {what} were measured on, and {least or 1} others are needed; {remedy}"
        )
    return samples if len(new) == count else samples[torch.from_numpy(new).to(samples.device)]


def unseen(windows: Tensor, candidates: Sequence[int], seen: Pieces) -> list[int]:
    """Keeps the candidates, row numbers of (windows, time) tokens, whose windows contain no piece that was seen."""
    chosen = list(candidates)
    if not len(seen) or not chosen:
        return chosen
    hashes = _hashes(windows[chosen])
    at = np.searchsorted(seen, hashes).clip(max=len(seen) - 1)
    met = (seen[at] == hashes).any(1)
    return [number for number, known in zip(chosen, met, strict=True) if not known]


def _whole(samples: Samples) -> Pieces:
    """(samples,): a hash of all that each holds."""
    hash_of = _heard if DECODED in samples.tensors else lambda sample: bytes.fromhex(sample.digest)
    digests = [hash_of(samples[number : number + 1]) for number in range(len(samples))]
    return np.array([int.from_bytes(each, "little") for each in digests], dtype=np.uint64)


def _heard(sample: Samples) -> bytes:
    """Of a recording, 8 bytes: zeros at its end are as many as a longer one in the same batch makes them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(sample.tensors.items()):
        if tensor.is_floating_point():
            values = tensor.cpu().flatten().numpy()
            digest.update(f"{name};{values.dtype};".encode() + np.trim_zeros(values, "b").tobytes())
    return digest.digest()[:8]


def _hashes(ids: Tensor) -> Pieces:
    """(sequences, time - PIECE + 1): a polynomial of each run of tokens, modulo 2^64."""
    tokens = (ids.cpu().numpy().astype(np.uint64) + np.uint64(1)) * _STEP
    tokens ^= tokens >> np.uint64(29)
    count = max(0, tokens.shape[1] - PIECE + 1)
    found = np.zeros((len(tokens), count), dtype=np.uint64)
    for place in range(PIECE):
        found = found * _STEP + tokens[:, place : place + count]
    return found
