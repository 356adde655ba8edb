"""Does `natprec push` survive a failing disk, too little memory, a connection that is cut? Every point once.

    python scripts/inject_push.py                       # all kinds, every point
    python scripts/inject_push.py --kinds request,read --most 20

As `inject.py`, beside which it needs tests/hub.py, a stand-in for the Hub on this machine: of all calls on files below
the run's folder (checkpoint, cache, temporary files) the n-th fails, for n = 1, 2, 3 …; of kind `request` the n-th
request gets no answer. After each run the branch holds the old commit or the new one, whole; the new one if the exit
code is 0; the checkpoint is as it was, and nothing is left of what was temporary. Exit code 1 if a point is lost.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from inject import HERE, KINDS, SMALL, contents, preloaded, ran

REQUEST = "request"
NAME = "alice/tiny-natprec"
CARD = "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n\n# tiny\n"


def setup(folder: Path, hub: Any) -> None:
    """A tiny model on the Hub, and a checkpoint that was quantized from there."""
    from same_bytes import SIZE, byte_tokenizer, made_up_text, saved_model

    SIZE.update(hidden_size=32, intermediate_size=64, num_hidden_layers=1, vocab_size=384)
    model = folder.parent / "tiny"
    saved_model(model, "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True)
    byte_tokenizer(384, False).save_pretrained(model)
    (model / "README.md").write_text(CARD)
    hub.add("alice/tiny", model)
    (folder.parent / "text.txt").write_text(made_up_text(6000))
    said = folder.parent / "said"
    arguments = ["quantize", "--model", "alice/tiny@main", "--eps", "0.5", "--data", "../text.txt", *SMALL]
    code, _, _ = ran([*arguments, "--eval-tokens", "128", "--out", "made"], folder, "write", 0, said)
    if code:
        sys.exit(f"quantize ends with {code}: {said.read_text()[-300:]}")


def fresh(hub: Any, folder: Path) -> dict[str, Any]:
    """The repository with an old commit alone, and no cache of what was read back; the old commit's files."""
    from tests.hub import Repository

    old = {"natprec/published.json": hub.entry(b"{}", "x"), "model.safetensors": hub.entry(b"old", "model.safetensors")}
    hub.repositories[NAME] = Repository(False)
    hub.repositories[NAME].commit("main", "old", dict(old), [])
    for name in hub.uploaded - {old["model.safetensors"]["sha256"]}:
        (hub.folder / name).unlink(missing_ok=True)
    hub.uploaded.clear()
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    (folder / "tmp").mkdir()
    return old


def pushed(folder: Path, hub: Any, kind: str, number: int, said: Path) -> tuple[int, int, bool]:
    """As `inject.ran`; of kind `request` the Hub drops one."""
    begun = len(hub.requests)

    def before(method: str, path: str) -> None:
        if number and len(hub.requests) - begun == number:
            raise ConnectionAbortedError("dropped")

    hub.before = before if kind == REQUEST else lambda method, path: None
    at = 0 if kind == REQUEST else number
    code, seen, fired = ran(["push", "made", NAME], folder, "write" if kind == REQUEST else kind, at, said)
    hub.before = lambda method, path: None
    with hub.lock:
        requests = len(hub.requests) - begun
    return (code, requests, 0 < number <= requests) if kind == REQUEST else (code, seen, fired)


def lost_by(code: int, said: str, head: Any, old: Any, new: Any, left: list[str]) -> list[str]:
    """What is wrong after a push in which something failed."""
    found, last = [], (said.strip().splitlines() or [""])[-1]
    if code not in (0, 2) or "Traceback" in said:
        found.append(f"exit code {code}: {last[:160]}")
    elif code == 2 and not last.startswith("natprec: "):
        found.append(f"no reason: {last[:160]}")
    if head not in (old, new):
        found.append("the branch holds neither the old commit nor the new one")
    elif code == 0 and head != new:
        found.append("exit code 0, and the branch holds the old commit")
    return found + ([f"left behind: {left[:3]}"] if left else [])


def points(kind: str, most: int, folder: Path, hub: Any, new: dict[str, Any]) -> int:
    """One kind: how many points were lost."""
    said, known = folder.parent / "said", contents(folder / "made")
    fresh(hub, folder)
    code, count, _ = pushed(folder, hub, kind, 0, said)
    assert code == 0, said.read_text()
    codes, lost, tried = dict[int, int](), 0, 0
    for number in range(1, count + 1, max(1, -(-count // most))):
        old = fresh(hub, folder)
        code, _, fired = pushed(folder, hub, kind, number, said)
        tried += fired
        codes[code] = codes.get(code, 0) + 1
        repository = hub.repositories[NAME]
        head = repository.commits[repository.branches["main"]].files
        left = sorted(str(path.relative_to(folder)) for path in (folder / "tmp").iterdir())
        found = lost_by(code, said.read_text(), head, old, new, left)
        if contents(folder / "made") != known:
            found.append("the checkpoint has changed")
        for line in found:
            print(f"  push: {kind} {number} of {count}: {line}", flush=True)
        lost += bool(found)
    by_code = ", ".join(f"{times} × exit {code}" for code, times in sorted(codes.items()))
    print(f"push       {kind:10} {tried:4} of {count:4} failed: {by_code or 'none'}; {lost} not survived", flush=True)
    return lost


def main() -> None:
    """All that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", default=",".join((*KINDS, REQUEST)))
    parser.add_argument("--most", type=int, default=10**6, help="points of a kind, spread over all of them")
    options = parser.parse_args()
    preloaded()
    sys.path.insert(0, str(HERE.parent))
    from tests.hub import Hub, User, served

    with tempfile.TemporaryDirectory(prefix="natprec-inject-") as scratch:
        folder = Path(scratch) / "here"
        (folder / "tmp").mkdir(parents=True)
        with served(Hub(Path(scratch) / "hub", {"hf_writer": User("alice")})) as hub:
            os.environ.update(
                HF_ENDPOINT=hub.url, HF_TOKEN="hf_writer", HF_HUB_CACHE=str(folder / "cache"), HF_HUB_DISABLE_XET="1",
                TMPDIR=str(folder / "tmp"),
            )  # fmt: skip
            tempfile.tempdir = None
            setup(folder, hub)
            import natprec.cli  # noqa: F401 - once, and not in every child

            fresh(hub, folder)
            code, _, _ = pushed(folder, hub, REQUEST, 0, Path(scratch) / "said")
            if code:
                sys.exit(f"push ends with {code} undisturbed: {(Path(scratch) / 'said').read_text()[-300:]}")
            repository = hub.repositories[NAME]
            new = repository.commits[repository.branches["main"]].files
            lost = sum(points(kind, options.most, folder, hub, new) for kind in options.kinds.split(","))
    print(f"{lost} points were not survived" if lost else "all survived")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
