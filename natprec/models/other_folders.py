"""Folders that hold something else than a model of transformers in safetensors, named for what they are.

torch is not needed, so that they are refused before it is imported.
"""

from __future__ import annotations

from pathlib import Path

from natprec.errors import ModelError
from natprec.models.config_file import FILE, found_object

PICKLES = ("*.bin", "*.ckpt", "*.pkl", "*.pt", "*.pth")

UNPICKLED = (
    "load it into the code of its model with torch.load(FILE, weights_only=True), and save that with "
    "save_pretrained(...), or measure it from Python: natprec.measure(module, samples=...)"
)
"""How a pickle becomes what natprec reads."""

PIPELINE = "model_index.json"
"""What diffusers calls its description of a pipeline."""


def pickle_in(folder: Path) -> str | None:
    """The first file that is a pickle by its name; None where there is none."""
    return next(iter(sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))), None)


def refuse_diffusion(folder: Path) -> None:
    """Refuse a pipeline of diffusers, and a part of one.

    Raises:
        ModelError: says what the folder is, and what can be done with it.
    """
    pipeline = found_object(folder / PIPELINE)
    if pipeline:
        parts = [name for name, entry in pipeline.items() if isinstance(entry, list) and None not in entry]
        raise ModelError(
            f"folder {str(folder)!r} is a pipeline of diffusers ({pipeline.get('_class_name')}: {', '.join(parts)}), "
            "whose checkpoints natprec does not write; measure one of its parts from Python: "
            "natprec.measure(pipeline.PART, samples=...)"
        )
    kind = found_object(folder / FILE).get("_class_name")
    if kind is not None:
        raise ModelError(
            f"folder {str(folder)!r} is a part of a diffusers pipeline ({kind}), whose checkpoints natprec does not "
            f"write; measure it from Python: natprec.measure({kind}.from_pretrained(...), samples=...)"
        )
