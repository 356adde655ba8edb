"""What files that are passed on say of the machine they were made on: nothing.

Plans, measurements, verdicts, `--json` and logs call a model or text by its name, beside a digest that identifies it.
Where it lay, who ran natprec and on which host is nobody's business; messages on the terminal may say so.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from pathlib import Path

OWN_TEXT = "written by the model"
"""The name of a text that nobody gave."""

PICTURES = "pictures of "
"""What the name of text about pictures begins with; that of their folder follows."""

COMMON = {"", "root", "user", "localhost"}
"""Users and hosts whose names say nothing, and are words of their own."""

FOLDERS = re.compile(r"(?:(?<![\w.~/-])|(?<=\w/))~?(?:/[^\s/'\"`,:;()<>\[\]{}|=]+)+/(?=[^\s/])")
"""Of an absolute path in a text all but its last part."""


def public_name(source: str | Path) -> str:
    """What a model, text or output is called: of a path its last part; a hub id or an alias as it is.

    >>> public_name("/home/someone/models/tiny"), public_name("HuggingFaceTB/SmolLM2-135M")
    ('tiny', 'HuggingFaceTB/SmolLM2-135M')
    """
    path = os.path.expanduser(source)
    local = isinstance(source, Path) or os.path.exists(path) or path[:1] in ("/", ".", "~")
    return os.path.basename(os.path.abspath(path)) if local else str(source)


def without_places(text: str) -> str:
    """A text of other programs (a log, an error) without folders, the user's name and the host's.

    >>> without_places("No such file: '/home/someone/models/tiny/config.json'; see https://pypi.org/simple/natprec")
    "No such file: 'config.json'; see https://pypi.org/simple/natprec"
    """
    for folder in {str(Path.cwd()), os.path.expanduser("~")} - {"/"}:  # these may have spaces
        text = text.replace(folder + "/", "")
    text = FOLDERS.sub("", text)
    for name, instead in ((_user(), "user"), (socket.gethostname(), "host")):
        if name not in COMMON:
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, text)
    return text


def _user() -> str:
    """Empty where the system does not know."""
    with contextlib.suppress(OSError, KeyError):
        return getpass.getuser()
    return ""
