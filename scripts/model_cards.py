"""Renders the cards of model_cards/ again from the JSON files beside them, or adds one from a checkpoint.

    python scripts/model_cards.py                                # writes each README.md
    python scripts/model_cards.py --check                        # exit code 1 if one differs from its rendering
    python scripts/model_cards.py --add smollm2-natprec NAME     # plan.json, verification.json, eval.json and terms
    python scripts/model_cards.py --from DIR                     # adds those of `MADE` whose checkpoints DIR has

The checkpoints come from the recipes, `python scripts/recipes.py --write --keep DIR …`. That of a true 16-bit model is
`natprec quantize --model true-float --eps 0.05 …` of what `scripts/true_float.py` writes.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from natprec.publishing.contents import EVALUATION, VERIFICATION, read_contents
from natprec.publishing.ladder import rendered
from natprec.publishing.vouch import doubt

CARDS = Path(__file__).parents[1] / "model_cards"

MADE = {
    "SmolLM2-135M-Instruct-eps0.05": "smollm2-135m-eps0.05",
    "SmolLM2-135M-Instruct-eps0.01": "smollm2-135m-eps0.01",
    "SmolLM2-135M-Instruct-W8A8-KV8": "smollm2-135m-w8a8-kv8",
    "SmolLM2-135M-Instruct-GGUF": "smollm2-135m-gguf",
    "SmolLM2-135M-Instruct-B200": "smollm2-135m-b200",
    "SmolLM2-135M-Instruct-true-float": "true-float-eps0.05",
    "all-MiniLM-L6-v2": "all-minilm-l6-v2",
}
"""Card → folder of its checkpoint, by the name of its recipe."""


def main() -> None:
    """Render, compare, or add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--add", nargs=2, metavar=("DIR", "NAME"), help="a checkpoint, and what its card is called")
    parser.add_argument("--from", type=Path, metavar="DIR", dest="made", help="folder of checkpoints")
    options = parser.parse_args()
    if options.add is not None:
        add(Path(options.add[0]), CARDS / options.add[1])
    for name, checkpoint in MADE.items() if options.made is not None else ():
        if (options.made / checkpoint).is_dir():
            add(options.made / checkpoint, CARDS / name)
    differing = 0
    for folder in cards():
        content, file = rendered(folder), folder / "README.md"
        if file.is_file() and file.read_text(encoding="utf-8") == content:
            continue
        differing += 1
        print(f"{folder.name}: {'differs from its rendering' if options.check else 'rendered'}")
        if not options.check:
            file.write_text(content, encoding="utf-8")
    raise SystemExit(1 if options.check and differing else 0)


def cards() -> list[Path]:
    """The folders that hold a card's files."""
    return sorted(file.parent for file in CARDS.glob("*/plan.json"))


def add(checkpoint: Path, folder: Path) -> None:
    """Copy what a card is rendered from; not the weights, nor the measurement.

    Raises:
        SystemExit: no verification vouches for the checkpoint.
    """
    contents = read_contents(checkpoint)
    reason = doubt(checkpoint, contents)
    if reason:
        raise SystemExit(f"{checkpoint.name}: {reason}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVALUATION).unlink(missing_ok=True)  # of an earlier checkpoint
    for name in ("plan.json", VERIFICATION, EVALUATION, *contents.licences):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)


if __name__ == "__main__":
    main()
