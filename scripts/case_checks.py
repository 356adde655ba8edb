"""What can be silently wrong with a checkpoint that a command was content with; used by `cases.py`.

Each check is of a kind and computed from the files alone, without natprec: the folder that went in, the one that came
out, the command and what it said. A finding is one line; no findings: as far as can be told, the output is right.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

CODES = (".weight_packed", ".weight_scale")
"""What marks a quantized weight in a checkpoint."""
BESIDE = ("*.json", "*.py", "*.model", "*.jinja", "LICENSE*", "README*", "NOTICE*")
"""Files that users of a checkpoint need; in folders inside it all files."""
OWN = ("config.json", "*.index.json")
"""Of those the ones that a quantizer writes anew."""
WIDEST = 8
"""Bits of the widest quantized format."""
FAR = 100.0
"""Ratio of a Fisher estimate to the exact value beyond which nobody should believe it."""

PLAIN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
source, made, text = sys.argv[1:]
ids = AutoTokenizer.from_pretrained(source)(open(text, encoding="utf-8").read()[-20000:])["input_ids"][-512:]
ids, logits = torch.tensor(ids).view(-1, 32), []
for folder in (source, made):
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    with torch.no_grad():
        logits.append(model.eval()(input_ids=ids).logits.log_softmax(-1))
kl = (logits[0].exp() * (logits[0] - logits[1])).sum(-1).mean()
print(json.dumps({"kl": float(kl), **{name: sorted(map(str, found)) for name, found in report.items() if found}}))
"""


@dataclass(frozen=True)
class Trial:
    """One command that exited with 0.

    Attributes:
        source, made: the folder that went in, and the checkpoint.
        arguments: of `natprec`.
        said: standard output and standard error.
    """

    source: Path
    made: Path
    arguments: Sequence[str]
    said: str

    @cached_property
    def before(self) -> dict[str, Path]:
        """Tensor of the input → its file."""
        return tensor_files(self.source)

    @cached_property
    def after(self) -> dict[str, Path]:
        """Tensor of the output → its file."""
        return tensor_files(self.made)

    @cached_property
    def quantized(self) -> set[str]:
        """Modules whose weights are codes."""
        return {name.rpartition(".")[0] for name in self.after if name.endswith(CODES)}

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json, NaN and infinity too."""
        value: dict[str, Any] = json.loads((self.made / "config.json").read_text())
        return value

    def option(self, name: str) -> str | None:
        """The value of an option of the command."""
        at = self.arguments.index(name) if name in self.arguments else -1
        return self.arguments[at + 1] if at >= 0 else None


def findings(trial: Trial) -> list[str]:
    """All that is wrong; nothing is checked of what is no compressed-tensors checkpoint."""
    if not (trial.made / "config.json").is_file():
        return []
    return [line for check in CHECKS for line in check(trial)]


def lost_tensors(trial: Trial) -> Iterator[str]:
    """Each tensor of the input is in the output: itself, as codes, under a new name, or (a head) as its tied twin.

    Where transformers joins, splits and renames weights as it loads them (HRM, GPT-NeoX), and they have become codes,
    all that tells is how many numbers went and came.
    """
    lost = [name for name in trial.before if not _is_there(trial, name)]
    if not lost:
        return
    twins = {_content(trial.before, name) for name in trial.before if name not in lost}
    came = Counter(_content(trial.after, name) for name in _came(trial))
    gone = [name for name in lost if not _taken(came, _content(trial.before, name))]
    gone = [name for name in gone if _numbered(name) or _content(trial.before, name) not in twins]
    numbers = sum(math.prod(shape) * count for (_, shape, _), count in came.items())
    possible = {numbers + sum(_in_codes(trial, lost, heads)) for heads in (True, False)}
    if gone and sum(_elements(trial.before, name) for name in gone) not in possible:
        yield f"{len(gone)} tensors of the input are not in the output, first {sorted(gone)[0]}"


def changed_dtypes(trial: Trial) -> Iterator[str]:
    """A tensor that is not quantized has the dtype that it had."""
    changed = []
    for name in sorted(trial.before.keys() & trial.after.keys()):
        if name.rpartition(".")[0] in trial.quantized and name.endswith(".weight"):
            continue
        was, now = (_dtype(files, name) for files in (trial.before, trial.after))
        if was != now:
            changed.append(f"{name} {was} → {now}")
    if changed:
        yield f"{len(changed)} unquantized tensors have another dtype, first {changed[0]}"


def lost_files(trial: Trial) -> Iterator[str]:
    """Files beside the weights are carried over, or named."""
    given = {trial.option("--data"), trial.option("--eval-data")}
    lost = []
    for file in sorted(trial.source.rglob("*")):
        name = file.relative_to(trial.source)
        inside = len(name.parts) > 1
        if not file.is_file() or str(file) in given or any(fnmatch(str(name), pattern) for pattern in OWN):
            continue
        if (inside or any(fnmatch(name.name, pattern) for pattern in BESIDE)) and not (trial.made / name).is_file():
            lost += [] if str(name) in trial.said else [str(name)]
    if lost:
        yield f"{len(lost)} files are not in the output and not named, first {lost[0]}"


def unmeasured(trial: Trial) -> Iterator[str]:
    """What is rounded was planned, and what was planned has been measured: nothing is free.

    Where text reaches a weight and its effect is 0 (a pooler beside the embedding, a factor of 0 behind it), it has the
    widest format that was measured.
    """
    plan = json.loads((trial.made / "plan.json").read_text())
    free = [name for name, choice in plan["sites"].items() if choice["bits"] < WIDEST and not choice["kl"] > 0]
    if free:
        yield f"{len(free)} weights have few bits, and had no effect when measured, first {free[0]}"
    count = sum(choice["bits"] < 16 for choice in plan["sites"].values())
    if len(trial.quantized) < count:
        yield f"{count} weights are planned as codes, but only {len(trial.quantized)} modules have any"


def broken_config(trial: Trial) -> Iterator[str]:
    """config.json is JSON, says how the head is stored, and what was asked for of the cache."""
    strange = re.findall(r"(?<![\w\"])-?(?:Infinity|NaN)(?![\w\"])", (trial.made / "config.json").read_text())
    if strange:
        yield f"config.json holds {strange[0]}, which is no JSON"
    text = trial.config.get("text_config") or {}
    tied = trial.config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    if tied and any(name in trial.after for name in ("lm_head.weight", "lm_head.weight_packed")):
        yield "config.json ties the head to the embedding, but the output has a head of its own"
    if trial.option("--kv") not in (None, "16") and not trial.config["quantization_config"].get("kv_cache_scheme"):
        yield f"--kv {trial.option('--kv')} was asked for, and config.json says nothing of the cache"


def unbelievable(trial: Trial) -> Iterator[str]:
    """The spot check of the estimator is not off by orders of magnitude."""
    with safe_open(trial.made / "natprec" / "measurement.safetensors", "pt") as file:
        header = json.loads(file.metadata()["natprec"])
    for name, fmt, fisher, exact in header["checks"]:
        if exact > 0 and fisher > 0 and abs(math.log(fisher / exact)) > math.log(FAR):
            yield f"Fisher says {fisher:.2g} of {name} at {fmt} where it is {exact:.2g}"


def other_in_transformers(trial: Trial) -> Iterator[str]:
    """For that engine: its loader finds every tensor, and its logits are as far off as the verdict says."""
    text = trial.option("--data")
    if trial.option("--engine") != "transformers" or text is None or Path(text).suffix != ".txt":
        return
    command = [sys.executable, "-c", PLAIN, str(trial.source), str(trial.made), text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        yield f"plain transformers cannot load it: {(done.stderr.strip().splitlines() or ['?'])[-1][:200]}"
        return
    found = json.loads(done.stdout.splitlines()[-1])
    judged = json.loads((trial.made / "verification.json").read_text())["kl_mean"]
    if not found.pop("kl") <= (bound := 3 * judged + 1e-3):
        yield f"plain transformers is farther from the original than {bound:.2g}, though the verdict says {judged:.2g}"
    for kind, names in found.items():
        yield f"plain transformers reports {len(names)} {kind.replace('_', ' ')}, first {names[0]}"


CHECKS = (
    lost_tensors, changed_dtypes, lost_files, unmeasured, broken_config, unbelievable, other_in_transformers,
)  # fmt: skip


def tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor → the safetensors file of a folder that holds it."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), file)
    return found


def _is_there(trial: Trial, name: str) -> bool:
    """By name: itself, its codes, the experts that it was taken apart into; transformers may rename the first parts."""
    module, _, leaf = name.rpartition(".")
    if name in trial.after or (leaf == "weight" and module in trial.quantized):
        return True
    renamed = (other for other in trial.quantized if f"{other}.weight" not in trial.before)
    if leaf == "weight" and any(_tails(other) & _tails(module) for other in renamed):
        return True
    return any(re.match(rf"{re.escape(module)}\.\d+\.", other) for other in trial.after)


def _came(trial: Trial) -> Iterator[str]:
    """Tensors under names that the input does not know, but for codes and what stands beside them."""
    for name in trial.after:
        module, _, leaf = name.rpartition(".")
        if name not in trial.before and (module not in trial.quantized or leaf == "bias"):
            yield name


def _taken(came: Counter[Any], content: Any) -> bool:
    """Whether one with this content came, which then stands for it alone."""
    came[content] -= 1
    if came[content] < 0:
        del came[content]
        return False
    return True


def _in_codes(trial: Trial, lost: Collection[str], heads: bool) -> Iterator[int]:
    """How many numbers each weight has that has become codes under a name that the input does not know.

    Args:
        heads: also those that may be heads written apart, whose embedding is there.
    """
    there = [name for name in trial.before if name not in lost]
    stayed = {_elements(trial.before, name) for name in there if not _numbered(name)}
    tails = {tail for name in there for tail in _tails(name) if tail.count(".") > 1}
    for name in trial.after:
        module, _, leaf = name.rpartition(".")
        if leaf == "weight_shape" and f"{module}.weight" not in trial.before and not _tails(f"{module}.weight") & tails:
            with safe_open(trial.after[name], "pt") as file:
                count = int(file.get_tensor(name).prod())
            if heads or _numbered(name) or count not in stayed:
                yield count


def _elements(files: dict[str, Path], name: str) -> int:
    with safe_open(files[name], "pt") as file:
        return math.prod(file.get_slice(name).get_shape())


def _tails(name: str) -> set[str]:
    """What is left of a name without its first part, or the first two."""
    parts = name.split(".")
    return {".".join(parts[first:]) for first in (1, 2) if parts[first:]}


def _numbered(name: str) -> bool:
    """Whether it lies in one of many blocks, which are never tied, though one may have been made from another."""
    return re.search(r"\.\d+\.", name) is not None


def _content(files: dict[str, Path], name: str) -> tuple[str, tuple[int, ...], int]:
    """Dtype, shape and a hash of the values."""
    with safe_open(files[name], "pt") as file:
        value = file.get_tensor(name)
    digest = hash(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return str(value.dtype), tuple(value.shape), digest


def _dtype(files: dict[str, Path], name: str) -> str:
    with safe_open(files[name], "pt") as file:
        kind: str = file.get_slice(name).get_dtype()
        return kind
