"""Does a change leave every byte of a checkpoint as it was? Two commits side by side on this machine.

    python scripts/same_bytes.py BEFORE [--models llama-tied,bert] [--real] [--now "--margin 0.05"]

Checks out BEFORE (a commit) into a temporary worktree, quantizes five tiny models in five ways with both, and
compares every tensor and every config.json. `--real` adds the demo's run of smollm2-135m and all-minilm-l6-v2,
`--models ''` leaves the tiny models out, `--now` gives the newer commit options that the older one did not have (the
reserve was fixed at 5 % before `--margin`). Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
SIZE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 512,
}
TOKENS = ("--tokens", "512", "--eval-tokens", "256", "--sequence-length", "32", "--group-size", "32")
WAYS = {
    "gptq": (),
    "rtn": ("--rounding", "rtn"),
    "learned": ("--rounding", "learned"),
    "kv 8": ("--kv", "8"),
    "activations 8": ("--activations", "8"),
}


def main() -> None:
    """Compare, print a line for each run, and say whether all are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a commit")
    parser.add_argument("--models", default=",".join(MODELS), help="which of the tiny models (default: all)")
    parser.add_argument("--real", action="store_true", help="the demo's run of SmolLM2, and all-MiniLM-L6-v2, as well")
    parser.add_argument("--now", default="", help="options for this commit alone")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-bytes-") as temporary:
        folder = Path(temporary)
        subprocess.run(
            ["git", "-C", HERE, "worktree", "add", "-q", "--detach", folder / "before", given.before], check=True
        )
        try:
            differing = sum(_report(*case, folder, given.now.split()) for case in _cases(given, folder))
        finally:
            subprocess.run(["git", "-C", HERE, "worktree", "remove", "--force", folder / "before"], check=True)
    print(f"{differing} differ" if differing else "all equal")
    sys.exit(bool(differing))


def _cases(given: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Model, way, arguments of quantize."""
    text = folder / "text.txt"
    text.write_text(made_up_text(60000))
    for name in filter(None, given.models.split(",")):
        model = MODELS[name](folder / name)
        for way, options in WAYS.items():
            yield name, way, ["--model", str(model), "--eps", "0.02", "--data", str(text), *TOKENS, *options]
    if given.real:
        yield "smollm2-135m", "demo", ["--model", "smollm2-135m", "--eps", "0.05"]
        data = ["--data", str(text), "--sequence-length", "128"]
        yield "all-minilm-l6-v2", "gptq", ["--model", "all-minilm-l6-v2", "--eps", "0.01", *data]


def _report(name: str, way: str, arguments: list[str], folder: Path, more: list[str]) -> bool:
    outcomes, seconds = [], []
    for which, tree, extra in (("old", folder / "before", []), ("new", HERE, more)):
        start = time.monotonic()
        outcomes.append(_quantized([*arguments, *extra], tree, folder / which))
        seconds.append(time.monotonic() - start)
    found = _difference(*outcomes)
    print(f"{name:18}{way:16}{found or 'equal':8}{seconds[0]:8.1f} s before{seconds[1]:8.1f} s now", flush=True)
    return bool(found)


def _quantized(arguments: list[str], tree: Path, out: Path) -> tuple[dict[str, Any], str]:
    """What the checkpoint holds, or the message with which it was refused."""
    env = os.environ | {"PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "natprec", "quantize", *arguments, "--out", str(out), "--overwrite"]
    done = subprocess.run(command, env=env, cwd=tree, capture_output=True, text=True)
    if done.returncode not in (0, 3):
        return {}, " ".join(done.stderr.split()[-30:])
    return _contents(out), ""


def _contents(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    config = out / "config.json"
    found: dict[str, Any] = {"config.json": json.loads(config.read_text())} if config.is_file() else {}
    for file in sorted(out.glob("*.safetensors")):
        found |= load_file(file)
    return found | {file.name: file.read_bytes() for file in out.glob("*.gguf")}


def _difference(old: tuple[dict[str, Any], str], new: tuple[dict[str, Any], str]) -> str:
    import torch

    if old[1] or new[1]:
        return "" if old[1] == new[1] else f"before: {old[1] or 'a checkpoint'} | now: {new[1] or 'a checkpoint'}"
    if old[0].keys() != new[0].keys():
        return f"other tensors: {sorted(old[0].keys() ^ new[0].keys())[:3]}"
    for name, value in old[0].items():
        other = new[0][name]
        same = torch.equal(value, other) and value.dtype == other.dtype if hasattr(value, "dtype") else value == other
        if not same:
            return f"{name} differs"
    return ""


def made_up_text(words: int) -> str:
    """Words that a frequency falls off over, in sentences of twelve."""
    draw = random.Random(0)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 8))) for _ in range(2000)]
    drawn = draw.choices(known, weights=[1 / (rank + 1) for rank in range(2000)], k=words)
    return "\n".join(" ".join(drawn[start : start + 12]) + "." for start in range(0, words, 12))


def byte_tokenizer(size: int, encoder: bool) -> Any:
    """Byte pairs of made-up words; an encoder's puts `<s>` and `</s>` around each text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>", "<pad>"], initial_alphabet=letters, show_progress=False
    )
    made.train_from_iterator([made_up_text(3000)], trainer)
    if not encoder:
        return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token="<s>", sep_token="</s>", pad_token="</s>")


def saved_model(folder: Path, kind: str, config: str, **options: Any) -> Path:
    """A tiny model of a class with random weights, in bfloat16, with a tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, config)(**SIZE, **options))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4.0)  # as transformers draws them, nothing depends on them
    model.to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer(SIZE["vocab_size"], kind == "BertModel").save_pretrained(folder)
    return folder


def _gguf(folder: Path) -> Path:
    """Written by the commit before: a llama whose weights are Q8_0."""
    model = saved_model(folder / "source", "LlamaForCausalLM", "LlamaConfig")
    text = folder / "text.txt"
    text.write_text(made_up_text(20000))
    arguments = ["--model", str(model), "--engine", "llama.cpp", "--bits", "9", "--data", str(text), *TOKENS[:6]]
    contents, refused = _quantized(arguments, HERE, folder / "made")
    assert contents, refused
    return next((folder / "made").glob("*.gguf"))


MODELS: dict[str, Callable[[Path], Path]] = {
    "llama-tied": lambda folder: saved_model(folder, "LlamaForCausalLM", "LlamaConfig", tie_word_embeddings=True),
    "llama-untied": lambda folder: saved_model(folder, "LlamaForCausalLM", "LlamaConfig", num_key_value_heads=2),
    "mixtral": lambda folder: saved_model(
        folder, "MixtralForCausalLM", "MixtralConfig", num_local_experts=4, num_key_value_heads=2
    ),
    "bert": lambda folder: saved_model(folder, "BertModel", "BertConfig"),
    "gguf": _gguf,
}

if __name__ == "__main__":
    main()
