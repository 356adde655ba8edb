"""`natprec landscape`: the precision that a VAE, a transformer and a UNet need by depth, beside what was claimed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from natprec.commands.options import Json, Overwrite, configured, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import METHOD, MODEL, OUTPUT, TEXT

EXAMPLES = ("natprec landscape", "natprec landscape --taef2 taef2 --dit dit.safetensors --out landscape")


@configured
def landscape(
    config: QuantizeConfig,
    taef2: Annotated[
        Path | None,
        own("--taef2", MODEL, "Folder of TAEF2's encoder.safetensors and decoder.safetensors; else GitHub."),
    ] = None,
    dit: Annotated[
        Path | None, own("--dit", MODEL, "Transformer by scripts/landscape_dit.py; else that in the cache.")
    ] = None,
    unet: Annotated[
        Path | None, own("--unet", MODEL, "ONNX file of adaptive-terrain-diffusion; else the installed one.")
    ] = None,
    data: Annotated[
        str | None, own("--data", TEXT, "Folder of photographs; else those of scikit-image and scikit-learn.")
    ] = None,
    repeats: Annotated[int, own("--repeats", METHOD, "Seeds, each with images and noise of its own.", min=1)] = 3,
    cache: Annotated[
        Path | None, own("--cache", OUTPUT, "Folder of what is downloaded; default: ~/.cache/natprec.")
    ] = None,
    out: Annotated[Path | None, own("--out", OUTPUT, "Folder for landscape.json and landscape.png.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure the bits that a VAE, a diffusion transformer and a UNet need by depth, beside what was claimed of them.

    The claim: encoder from 16 bits to 8, latents and transformer 3 to 4, decoder from 8 to 16. See docs/landscape.md.
    """
    _refuse_absent(taef2, "--taef2", "a folder")
    _refuse_absent(dit, "--dit", "a file")
    _refuse_absent(unet, "--unet", "a file")
    from natprec.commands.output import print_json, show
    from natprec.inspection.landscape.known import Asked, networks
    from natprec.inspection.landscape.measure import measured, rows
    from natprec.inspection.landscape.picture import draw
    from natprec.inspection.landscape.report import tables, to_json
    from natprec.utils.atomic_files import new_folder, refuse_existing, write_json
    from natprec.utils.progress import Stages

    if out is not None:
        refuse_existing(out, overwrite)
    stages, drawn = Stages(), False
    chosen, missing = networks(Asked(taef2, dit, unet, data, cache or _cache()))
    for sentence in missing:
        stages.note(sentence)
    found = [measured(each, range(config.seed, config.seed + repeats), stages) for each in chosen]
    value = to_json(found, [rows(each) for each in found], missing)
    if out is not None:
        with new_folder(out, overwrite) as folder:
            write_json(folder / "landscape.json", value)
            drawn = draw(value, folder / "landscape.png")
    if as_json:
        print_json(value)
        return
    show(tables(value))
    if out is not None:
        print(f"written to {out}" + (", with landscape.png" if drawn else "; pip install matplotlib for the picture"))


def _refuse_absent(path: Path | None, flag: str, what: str) -> None:
    """Before torch is imported."""
    if path is not None and not (path.is_dir() if what == "a folder" else path.is_file()):
        raise InputError(f"{flag} {str(path)!r} {'is not' if path.exists() else 'does not exist; give'} {what}")


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "natprec"
