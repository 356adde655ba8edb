"""A folder of recordings, and the text of each: a file of its name beside it, NAME.txt for NAME.wav."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from natprec.data.folders import RECORDINGS
from natprec.data.waves import read_wave
from natprec.errors import InputError

PACKED = (".flac", ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wma", ".aif", ".aiff", ".amr", ".webm", ".mp4")
"""Recordings that need a decoder."""


def find_recordings(folder: str | Path) -> list[Path]:
    """The WAV files of a folder: see `natprec.data.folders.Kind.find`.

    Raises:
        InputError: as there; or it holds recordings of other kinds, which would be passed over.
    """
    place = Path(folder).expanduser()
    others = sorted(file for file in place.rglob("*") if file.suffix.lower() in PACKED) if place.is_dir() else []
    if others:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in Counter(each.suffix for each in others).items())
        raise InputError(
            f"recordings {str(folder)!r} holds {kinds}, and natprec reads .wav alone; convert them (ffmpeg -i "
            f"{others[0].name} {others[0].stem}.wav) and take them out of the folder"
        )
    return RECORDINGS.find(folder)


def refuse_recordings(folder: str | Path) -> None:
    """Read each recording and its text, before a model is loaded.

    Raises:
        InputError: see `find_recordings`, `natprec.data.waves.read_wave` and `transcript`.
    """
    for file in find_recordings(folder):
        read_wave(file)
        transcript(file)


def transcript(file: Path) -> str:
    """What is said in a recording, by the text file beside it; empty where there is none.

    Raises:
        InputError: it cannot be read.
    """
    text = file.with_suffix(".txt")
    if not text.is_file():
        return ""
    try:
        return text.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"transcript {str(text)!r} cannot be read ({error}); make it UTF-8 text") from error
