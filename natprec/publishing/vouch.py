"""Whether a verification vouches for exactly the bytes that are to be published; and what goes along."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path

from natprec.errors import InputError
from natprec.evaluation.verdict import FAIL
from natprec.evaluation.verify import MEASUREMENT
from natprec.models.checksums import refuse_damaged
from natprec.publishing.base import FILE
from natprec.publishing.contents import EVALUATION, VERIFICATION, Contents
from natprec.utils.digests import changed
from natprec.utils.marks import listed
from natprec.utils.records import COMMON

SAID = (".json", ".md", ".svg", ".html", ".jinja", ".txt", ".yaml")
"""Endings of files whose text is looked through for places of this machine; a tokenizer's words are not."""

SECRET = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")


def doubt(folder: Path, contents: Contents) -> str:
    """Why nobody vouches for a checkpoint, with the remedy after a semicolon; empty: a verification does."""
    found, again = contents.verification, f"run natprec verify {folder}"
    if found is None:
        return f"no verification lies beside; {again}"
    if contents.verdict == FAIL:
        promise = f"{contents.promise:g}"
        return f"it fails its promise: measured {found.kl_mean:.4g} > {promise}; quantize with more room"
    if not found.files:
        return f"its verification does not say which bytes it judged (it is of an older natprec); {again}"
    other = changed(found.files, folder)
    if other:
        return f"{other[0]!r} is not the file that was judged, its sha256 differs; {again}"
    return ""


def vouched(folder: Path, contents: Contents, allowed: bool) -> str:
    """The reason to doubt that is published with the checkpoint; empty: none.

    Args:
        allowed: `--allow-unverified`.
    Raises:
        InputError: nobody vouches for it, and that is not allowed; or its answers are of other weights.
        ModelError: a weight file is damaged.
    """
    reason = doubt(folder, contents)
    if not reason:
        return ""
    what, _, remedy = reason.partition("; ")
    if not allowed:
        raise InputError(f"checkpoint {str(folder)!r} is not published: {what}; {remedy}, or add --allow-unverified")
    refuse_damaged(sorted(folder.glob("*.safetensors")), ours=True)
    asked = {} if contents.evaluation is None else contents.evaluation.files
    if asked and (other := changed(asked, folder)):
        raise InputError(
            f"checkpoint {str(folder)!r} is not published: {other[0]!r} is not the file that {EVALUATION} is of; run "
            "natprec eval again, or take it out"
        )
    return what


def own_files(folder: Path, measurement: bool = True) -> dict[str, Path]:
    """Name in the repository → file: what natprec wrote into a folder, and no more.

    Args:
        measurement: whether it goes along.
    Raises:
        InputError: natprec did not write the folder, or a file is gone.
    """
    known = listed(folder)
    if known is None:
        raise InputError(f"folder {str(folder)!r} was not written by natprec: push what natprec quantize writes")
    names = {*known} - {"README.md", FILE, VERIFICATION}
    names |= {name for name in (VERIFICATION, EVALUATION) if (folder / name).is_file()}
    if not measurement:
        names.discard(MEASUREMENT.as_posix())
    gone = sorted(name for name in names if not (folder / name).is_file())
    if gone:
        raise InputError(f"folder {str(folder)!r} lacks {gone[0]!r}, which natprec wrote there; quantize again")
    return {name: folder / name for name in sorted(names)}


def refuse_private(files: Mapping[str, Path | bytes]) -> None:
    """Look through all text once more: a token, or a place of this machine, stays here.

    Raises:
        InputError: names the file.
    """
    home, host = str(Path.home()).encode(), socket.gethostname().encode()
    places = [home + b"/"] if home.count(b"/") > 1 else []
    for name, value in files.items():
        if not name.endswith(SAID) or name.startswith(("tokenizer", "vocab", "merges")):
            continue
        content = value if isinstance(value, bytes) else value.read_bytes()
        if SECRET.search(content):
            raise InputError(f"{name!r} holds what looks like a token of the Hub; take it out")
        named = host.decode() not in COMMON and re.search(rb"(?<!\w)" + re.escape(host) + rb"(?!\w)", content)
        if named or any(place in content for place in places):
            raise InputError(f"{name!r} names a place of this machine; take it out, or quantize again")
