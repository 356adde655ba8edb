"""Does a run that is killed at a random moment resume to the same bits? Of each trial one line, then how many did.

    python scripts/kills.py --data valid.txt --trials 20
    python scripts/kills.py --data valid.txt --trials 20 --weights disk
    python scripts/kills.py --data valid.txt --trials 10 --weights disk --processes 2 --then 1 2 3
    python scripts/kills.py --data valid.txt --trials 20 --model smollm2-135m --tokens 512
    python scripts/kills.py --model dit-emoji --component transformer --trials 10

A whole `natprec quantize`, of a small random model unless one is named, is killed with SIGKILL after a random share of
the time that it takes when nobody disturbs it, then resumed. Measurement, plan, verification and every file of the
checkpoint must be the same bits as without the kill (of the measurement all but the seconds that it took).

With --processes one of so many is killed, which ends the others, and 1, 2 and 3 processes in turn go on. Sums in
another order make the last digits of a measurement others, so then the weights must be the same bits as without the
kill.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from large_model import write_model
from transformers import LlamaConfig

from natprec.cli import main as natprec
from natprec.utils import heartbeat, meeting, store
from natprec.utils.marks import MARK

SHAPE = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 512}


def start(arguments: list[str], processes: int = 1) -> list[int]:
    """The command line in processes of its own, forked: what is imported need not be imported again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    known = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        forked(arguments, {**known, "RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {})
        for rank in range(processes)
    ]


def forked(arguments: list[str], variables: dict[str, str]) -> int:
    """One process, which has these variables."""
    child = os.fork()
    if child == 0:
        os.environ.update(variables)
        with open(os.devnull, "w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            sys.argv = ["natprec", *arguments]
            try:
                natprec()
            except SystemExit as stop:
                os._exit(int(stop.code or 0))
        os._exit(1)
    return child


def ended(children: list[int]) -> list[int]:
    """Their exit codes, once all have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def contents(folder: Path) -> dict[str, bytes]:
    """File → what must not differ."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    name = "natprec/measurement.safetensors"
    size = int.from_bytes(files[name][:8], "little")
    header = json.loads(files[name][8 : 8 + size])
    described = json.loads(header["__metadata__"]["natprec"])
    for each in ("seconds", "checksum"):  # of all that stands there, so of the seconds too
        described.pop(each, None)
    header["__metadata__"]["natprec"] = described
    sizes = json.loads(files[MARK])
    sizes["files"].pop(name)  # a second more may be a digit more
    files[MARK] = json.dumps(sizes).encode()
    return files | {name: json.dumps(header, sort_keys=True).encode() + files[name][8 + size :]}


def main() -> None:
    """Run once in peace, then with a kill in each trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="text; not for a part of a pipeline")
    parser.add_argument("--model", help="default: a small one with random weights")
    parser.add_argument("--component", help="of a pipeline of diffusers")
    parser.add_argument("--tokens", type=int, help="default: 1,024, of several processes 8,192")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", default="memory", help="memory, or disk: one block at a time")
    parser.add_argument("--processes", type=int, default=1, help="that share the run; one of them is killed")
    parser.add_argument("--then", type=int, nargs="+", default=[1], help="processes that go on, in turn")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    os.environ["SOURCE_DATE_EPOCH"] = str(int(time.time()))  # else two runs differ by their dates
    if options.processes > 1:  # nobody waits half a minute for a process that was killed on purpose
        heartbeat.LIMIT, heartbeat.GRACE = 5, 2
        store.JOINING = meeting.JOINING = timedelta(seconds=20)
    with tempfile.TemporaryDirectory(prefix="natprec-kills-") as scratch:
        model = options.model or str(Path(scratch) / "model")
        if options.model is None:
            shape = LlamaConfig(**SHAPE, num_hidden_layers=options.layers, tie_word_embeddings=False)
            write_model(Path(model), shape)
        tokens = str(options.tokens or (1024 if options.processes == 1 else 8192))
        command = ["quantize", "--model", model, "--bits", "4.5", "--tokens", tokens, "--eval-tokens", "512"]
        if options.component:
            command += ["--component", options.component, "--steps", "2"]
        else:
            command += ["--data", options.data, "--sequence-length", "64", "--weights", options.weights]
        command += ["--out"]
        expected, seconds = {}, 0.0
        for count in sorted({options.processes, *options.then}):
            peace, begun = Path(scratch) / f"peace-{count}", time.monotonic()
            assert ended(start([*command, str(peace)], count)) == [0] * count
            seconds = time.monotonic() - begun if count == options.processes else seconds
            expected[count] = contents(peace)
        same = 0
        for trial in range(options.trials):
            out, count = Path(scratch) / f"trial-{trial}", options.then[trial % len(options.then)]
            children = start([*command, str(out)], options.processes)
            share = draw.random()
            time.sleep(share * seconds)
            victim = draw.randrange(options.processes)
            os.kill(children[victim], signal.SIGKILL)
            killed = ended(children)[victim] == -signal.SIGKILL
            resumed = not out.exists()
            if resumed:
                ended(start([*command, str(out), "--resume"], count))
            unbroken = expected[count if resumed else options.processes]
            differ = differing(contents(out), unbroken, options.processes > 1)
            left = sorted(entry.name for entry in out.parent.iterdir() if entry.name.startswith((".", f"{out.name}.")))
            same += not differ and not left
            row = {"trial": trial, "killed_after": round(share * seconds, 2), "killed": killed, "differ": differ}
            if options.processes > 1:
                row |= {"victim": victim, "then": count}
            print(json.dumps({**row, "left_behind": left}), flush=True)
        print(json.dumps({"seconds_undisturbed": round(seconds, 2), "same": same, "of": options.trials}))


def differing(found: dict[str, bytes], expected: dict[str, bytes], weights: bool) -> list[str]:
    """The files that are not the same bits, or with `weights` those that hold them; and those that are not in both."""
    names = [name for name in expected.keys() & found.keys() if found[name] != expected[name]]
    if weights:
        names = [name for name in names if name.endswith((".safetensors", "config.json")) and "/" not in name]
    return sorted({*names, *(expected.keys() ^ found.keys())})


if __name__ == "__main__":
    main()
