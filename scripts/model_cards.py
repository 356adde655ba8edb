"""Renders the cards of model_cards/ again from the JSON files beside them, or adds one from a checkpoint.

    python scripts/model_cards.py                                # writes each README.md
    python scripts/model_cards.py --check                        # exit code 1 if one differs from its rendering
    python scripts/model_cards.py --add smollm2-natprec NAME     # plan.json, verification.json and terms

The checkpoints come from the recipes: `natprec quantize --recipe recipes/smollm2-135m-eps0.05.toml --out DIR`.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from natprec.publishing.contents import VERIFICATION, read_contents
from natprec.publishing.ladder import rendered
from natprec.publishing.vouch import doubt

CARDS = Path(__file__).parents[1] / "model_cards"


def main() -> None:
    """Render, compare, or add."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--add", nargs=2, metavar=("DIR", "NAME"), help="a checkpoint, and what its card is called")
    options = parser.parse_args()
    if options.add is not None:
        add(Path(options.add[0]), CARDS / options.add[1])
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
    for name in ("plan.json", VERIFICATION, *contents.licences):
        shutil.copyfile(checkpoint / name, folder / name)


if __name__ == "__main__":
    main()
