"""The whole of `natprec quantize` beside llm-compressor's GPTQ, on as many tokens, in turns.

    python scripts/beside_gptq.py --data valid.txt --eval-data test.raw.txt --python PEERS/bin/python

Printed per pair: GPTQ's seconds as `natprec compare` times them (on the loaded model, without saving), natprec's from
the loaded model to the verdict (measure, spot check, solve, round, write, load the checkpoint, verify), and their
ratio. Reading the model and the texts is in neither; nor is the half of the calibration text that the model writes
itself, which is printed apart.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TEXTS = ("load model", "calibration text", "calibration text, written by the model", "held-out text")


def report(command: str, options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What a command of natprec says in JSON."""
    shared = ["--model", options.model, "--data", options.data, "--eval-data", options.eval_data]
    shared += ["--tokens", str(options.tokens), "--eval-tokens", str(options.eval_tokens)]
    line = [sys.executable, "-m", "natprec", command, *shared, *more, "--json"]
    return json.loads(subprocess.run(line, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def main() -> None:
    """Run the pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", required=True)
    parser.add_argument("--eval-data", required=True)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--eval-tokens", type=int, default=4096)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--python", default=sys.executable, help="of an environment with natprec[baselines]")
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    ratios = []
    for number in range(options.pairs):
        with tempfile.TemporaryDirectory(prefix="natprec-beside-gptq-") as scratch:
            out = Path(scratch)
            peer = ["--bits", str(options.bits), "--methods", "gptq", "--python", options.python]
            (row,) = report("compare", options, *peer, "--out", str(out / "peer"))["rows"]
            size = ["--max-size", str(row["stored_bytes"])]
            own = report("quantize", options, *size, "--out", str(out / "own"))
        texts = {name: own["seconds"].pop(name, 0.0) for name in TEXTS}
        total = sum(own["seconds"].values())
        ratios.append(total / row["seconds"])
        line = {
            "pair": number,
            "ratio": round(ratios[-1], 3),
            "gptq_seconds": round(row["seconds"], 1),
            "natprec_seconds": round(total, 1),
            "stages": {name: round(value, 1) for name, value in own["seconds"].items()},
            "written_text_seconds": round(texts["calibration text, written by the model"], 1),
        }
        print(json.dumps(line), flush=True)
    print(json.dumps({"median_ratio": round(statistics.median(ratios), 3)}))


if __name__ == "__main__":
    main()
