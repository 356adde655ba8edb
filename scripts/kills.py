"""Does a run that is killed at a random moment resume to the same bits? Of each trial one line, then how many did.

    python scripts/kills.py --data valid.txt --trials 20
    python scripts/kills.py --data valid.txt --trials 20 --weights disk

A whole `natprec quantize` of a small random model is killed with SIGKILL after a random share of the time that it takes
when nobody disturbs it, then resumed. Measurement, plan, verification and every file of the checkpoint must be the same
bits as without the kill (of the measurement all but the seconds that it took).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from large_model import write_model
from transformers import LlamaConfig

from natprec.cli import main as natprec

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 512}


def start(arguments: list[str]) -> int:
    """The command line in a process of its own, forked: what is imported need not be imported again."""
    child = os.fork()
    if child == 0:
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            sys.argv = ["natprec", *arguments]
            try:
                natprec()
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
        os._exit(1)
    return child


def contents(folder: Path) -> dict[str, bytes]:
    """File → what must not differ."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    name = "natprec/measurement.safetensors"
    size = int.from_bytes(files[name][:8], "little")
    header = json.loads(files[name][8 : 8 + size])
    described = json.loads(header["__metadata__"]["natprec"])
    described.pop("seconds")
    header["__metadata__"]["natprec"] = described
    return files | {name: json.dumps(header, sort_keys=True).encode() + files[name][8 + size :]}


def main() -> None:
    """Run once in peace, then with a kill in each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="memory", help="memory, or disk: one block at a time")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="natprec-kills-") as scratch:
        model = Path(scratch) / "model"
        write_model(model, LlamaConfig(**SHAPE, num_hidden_layers=options.layers, tie_word_embeddings=False))
        command = ["quantize", "--model", str(model), "--bits", "4.5", "--data", options.data, "--tokens", "1024"]
        command += ["--eval-tokens", "512", "--sequence-length", "64", "--weights", options.weights, "--out"]
        peace = Path(scratch) / "peace"
        begun = time.monotonic()
        os.waitpid(start([*command, str(peace)]), 0)
        seconds = time.monotonic() - begun
        expected = contents(peace)
        same = 0
        for trial in range(options.trials):
            out = Path(scratch) / f"trial-{trial}"
            child = start([*command, str(out)])
            share = draw.random()
            time.sleep(share * seconds)
            os.kill(child, signal.SIGKILL)
            killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
            if not out.exists():
                os.waitpid(start([*command, str(out), "--resume"]), 0)
            equal = contents(out) == expected
            left = sorted(entry.name for entry in out.parent.iterdir() if entry.name.startswith((".", f"{out.name}.")))
            same += equal and not left
            row = {"trial": trial, "killed_after": round(share * seconds, 2), "killed": killed, "same": equal}
            print(json.dumps({**row, "left_behind": left}), flush=True)
        print(json.dumps({"seconds_undisturbed": round(seconds, 2), "same": same, "of": options.trials}))


if __name__ == "__main__":
    main()
