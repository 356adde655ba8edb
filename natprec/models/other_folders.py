"""Folders that hold something else than a model of transformers in safetensors, named for what they are.

torch is not needed, so that they are refused before it is imported.
"""

from __future__ import annotations

from pathlib import Path

PICKLES = ("*.bin", "*.ckpt", "*.pkl", "*.pt", "*.pth")

UNPICKLED = (
    "load it into the code of its model with torch.load(FILE, weights_only=True), and save that with "
    "save_pretrained(...), or measure it from Python: natprec.measure(module, samples=...)"
)
"""How a pickle becomes what natprec reads."""


def pickle_in(folder: Path) -> str | None:
    """The first file that is a pickle by its name; None where there is none."""
    return next(iter(sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))), None)
