"""Memory of `natprec measure` on models with random weights that are read from disk block by block.

    python scripts/large_model.py --layers 6 24          # one shape at several depths
    python scripts/large_model.py --three-billion        # 6 GB of bfloat16 on disk, deleted afterwards
    python scripts/large_model.py --forecast             # of `quantize` on 1 to 8 processes; 16 GB on disk

Each model is written to a temporary folder tensor by tensor; then the command line measures it in a process of its
own, whose peak resident set is printed beside what `--dry-run` forecast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

MIDDLE = {"hidden_size": 1024, "intermediate_size": 2816, "num_attention_heads": 16, "vocab_size": 4096}
THREE_BILLION = {
    "hidden_size": 3200,
    "intermediate_size": 8640,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "num_hidden_layers": 26,
}
"""The shape of OpenLLaMA 3B."""
EIGHT_BILLION = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "num_hidden_layers": 32,
}
"""The shape of Llama 3.1 8B."""


def write_model(folder: Path, config: Any, device: str = "cpu") -> int:
    """Random bfloat16 weights, one file per block, and a tokenizer of bytes; returns the bytes on disk.

    Args:
        config: of a causal language model of transformers.
        device: that draws the weights.
    """
    folder.mkdir(parents=True)
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    by_file: dict[str, list[str]] = {}
    for name in shapes:
        by_file.setdefault(name.split(".")[2] if ".layers." in name else "rest", []).append(name)
    where = {}
    generator = torch.Generator(device).manual_seed(0)
    for number, names in enumerate(by_file.values(), start=1):
        file = f"model-{number:05d}-of-{len(by_file):05d}.safetensors"
        tensors = {
            name: torch.ones(shapes[name], dtype=torch.bfloat16)
            if len(shapes[name]) == 1
            else torch.empty(shapes[name], dtype=torch.bfloat16, device=device)
            .normal_(0, 0.02, generator=generator)
            .cpu()
            for name in names
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.iterdir())


def measured(folder: Path, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `--dry-run` forecasts and what `natprec measure` then takes."""
    command = [sys.executable, "-m", "natprec", "measure", "--model", str(folder), "--data", data]
    command += ["--tokens", str(options.tokens), "--sequence-length", str(options.sequence_length)]
    command += ["--rounding", options.rounding, "--weights", "disk", "--json"]
    command += ["--out", str(folder.parent / "measurement")]
    start = time.perf_counter()
    run = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    forecast = json.loads(subprocess.run([*command, "--dry-run"], check=True, stdout=subprocess.PIPE).stdout)
    return {
        "peak_bytes": run["peak_bytes"],
        "forecast_bytes": forecast["memory_bytes"],
        "forecast_of_peak": round(forecast["memory_bytes"] / run["peak_bytes"], 3),
        "seconds": round(time.perf_counter() - start, 1),
        "stages": {stage: round(seconds, 1) for stage, seconds in run["seconds"].items()},
    }


def forecast(folder: Path, data: str, options: argparse.Namespace) -> dict[str, Any]:
    """Memory, seconds and bytes sent of `natprec quantize`, by number of processes."""
    command = [sys.executable, "-m", "natprec", "quantize", "--model", str(folder), "--data", data, "--eps", "0.05"]
    command += ["--tokens", str(options.tokens), "--sequence-length", str(options.sequence_length)]
    command += ["--rounding", options.rounding, "--weights", "disk", "--json", "--dry-run"]
    command += ["--out", str(folder.parent / "out")]
    said = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return {"weights": said["weights"], "seconds": said["seconds"], "shared": said["shared"]}


def main() -> None:
    """Write, measure, delete."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--layers", type=int, nargs="*", default=[])
    parser.add_argument("--three-billion", action="store_true")
    parser.add_argument("--forecast", action="store_true", help="what `quantize --dry-run` says; nothing is measured")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--rounding", default="gptq")
    options = parser.parse_args()
    shapes = [{**MIDDLE, "num_hidden_layers": layers} for layers in options.layers]
    shapes += [THREE_BILLION] if options.three_billion or options.forecast else []
    shapes += [EIGHT_BILLION] if options.forecast else []
    told = forecast if options.forecast else measured
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="natprec-large-") as scratch:
            folder = Path(scratch) / "model"
            size = write_model(folder, LlamaConfig(**shape, bos_token_id=None, tie_word_embeddings=False))
            result = {"layers": shape["num_hidden_layers"], "bytes_on_disk": size}
            print(json.dumps(result | told(folder, options.data, options)), flush=True)


if __name__ == "__main__":
    main()
