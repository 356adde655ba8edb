"""A checkpoint run on its codes beside transformers in bfloat16 and float32, and llama.cpp: speed, memory, same text.

    python scripts/cpu_bench.py quantized --model smollm2-135m --threads 1
    python scripts/cpu_bench.py quantized --model smollm2-135m --gguf quantized-gguf   (pip install --no-deps xllamacpp)

All decode 64 tokens greedily after a prompt, and read 512 tokens, in turn for a few rounds; medians are printed,
as JSON. On a machine that others use too, `--cpu-seconds` counts this process's CPU time instead of the clock's; it is
what all threads take, so it wants `--threads 1`. Greedy text is compared with that of the same folder dequantized to
float32; where it parts, the reference's difference of the two tokens' logits is given: a near tie is no error. `where`
is what decoding spends its time on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llama_cpp_check import LlamaCpp

import natprec
from natprec.checkpoints.dense_reader import load_quantized
from natprec.models.loading import load_model
from natprec.runtime.generate import generate, prompt_ids
from natprec.runtime.load import Runnable
from natprec.tasks import CAUSAL

PROMPTS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse keeper.",
    "Explain how a bicycle stays upright.",
    "What is the capital of France, and what is it known for?",
    "Give me a recipe for pancakes.",
)
NEW_TOKENS, LONG = 64, 512


Clock = Callable[[], float]


def decode(runnable: Runnable, clock: Clock = time.perf_counter) -> float:
    """Tokens per second after the first: what one token takes is taken off."""
    start = clock()
    generate(runnable, PROMPTS[1], max_new_tokens=1, greedy=True)
    middle = clock()
    tokens = generate(runnable, PROMPTS[1], max_new_tokens=NEW_TOKENS, greedy=True).tokens
    return (len(tokens) - 1) / (clock() - middle - (middle - start))


@torch.inference_mode()
def prefill(runnable: Runnable, ids: list[int], clock: Clock = time.perf_counter) -> float:
    """Tokens of a long prompt per second."""
    start = clock()
    runnable.model(input_ids=torch.tensor([ids]), logits_to_keep=1)
    return len(ids) / (clock() - start)


def llama_cpp(file: Path, ids: list[int], short: list[int], clock: Clock) -> Callable[[], tuple[float, float]]:
    """A function that returns tokens per second, decoding after the short prompt and reading the long one."""
    engine = LlamaCpp(file, context=len(ids) + NEW_TOKENS + 8)

    def seconds(prompt: list[int], new: int) -> float:
        start = clock()
        engine.server.handle_completions(
            {"prompt": prompt, "n_predict": new, "temperature": 0, "cache_prompt": False, "ignore_eos": True}
        )
        return clock() - start

    def run() -> tuple[float, float]:
        one = seconds(short, 1)
        return (NEW_TOKENS - 1) / (seconds(short, NEW_TOKENS) - one), len(ids) / seconds(ids, 1)

    return run


@torch.inference_mode()
def same_text(quantized: Runnable, reference: Runnable) -> list[dict[str, Any]]:
    """For every prompt: tokens in common, and how near the tie was where texts part."""
    rows = []
    for prompt in PROMPTS:
        texts = [
            generate(each, prompt, max_new_tokens=NEW_TOKENS, greedy=True).tokens for each in (quantized, reference)
        ]
        pairs = zip(*texts, strict=False)
        common = next((at for at, (own, other) in enumerate(pairs) if own != other), min(map(len, texts)))
        row: dict[str, Any] = {"prompt": prompt, "tokens": len(texts[1]), "common": common}
        if texts[0] != texts[1]:
            ids = prompt_ids(reference, prompt) + list(texts[1][:common])
            logits = reference.model(input_ids=torch.tensor([ids]), logits_to_keep=1).logits[0, -1]
            row["reference_logit_difference"] = float(logits[texts[1][common]] - logits[texts[0][common]])
        rows.append(row)
    return rows


def where(runnable: Runnable) -> dict[str, float]:
    """Shares of decoding by torch operation, the largest first."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        decode(runnable)
    times = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
    total = sum(times.values())
    return {name: round(times[name] / total, 3) for name in sorted(times, key=times.__getitem__, reverse=True)[:12]}


def main() -> None:
    """Load all, then time them in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a compressed-tensors checkpoint")
    parser.add_argument("--model", required=True, help="the original, for transformers")
    parser.add_argument("--gguf", type=Path, help="of about the same bits, for llama.cpp")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu-seconds", action="store_true", help="of this process, in place of the clock's seconds")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    quantized = natprec.load(options.folder)
    original = load_model(options.model)
    bfloat16 = load_model(options.model).model.to(torch.bfloat16)
    runs = {"natprec": quantized}
    for name, model in (("bfloat16", bfloat16), ("float32", original.model)):
        model.generation_config = quantized.model.generation_config
        runs[name] = Runnable(model.eval(), quantized.tokenizer, {}, CAUSAL, torch.device("cpu"))
    ids = (quantized.tokenizer(" ".join(PROMPTS)).input_ids * LONG)[:LONG]
    rates: dict[str, dict[str, list[float]]] = {"decode": {}, "prefill": {}}
    clock = time.process_time if options.cpu_seconds else time.perf_counter
    engine = None
    if options.gguf:
        file = options.gguf if options.gguf.is_file() else options.gguf / "model.gguf"
        engine = llama_cpp(file, ids, prompt_ids(quantized, PROMPTS[1]), clock)
    for _ in range(options.rounds):
        for name, each in runs.items():
            rates["decode"].setdefault(name, []).append(decode(each, clock))
            rates["prefill"].setdefault(name, []).append(prefill(each, ids, clock))
        if engine:
            for kind, rate in zip(("decode", "prefill"), engine(), strict=True):
                rates[kind].setdefault("llama.cpp", []).append(rate)
    speed = {kind: {name: statistics.median(each) for name, each in found.items()} for kind, found in rates.items()}
    reference = Runnable(load_quantized(options.folder), quantized.tokenizer, {}, CAUSAL, torch.device("cpu"))
    reference.model.generation_config = quantized.model.generation_config
    report = {
        "threads": options.threads,
        "seconds": "CPU" if options.cpu_seconds else "clock",
        "replaced": quantized.replaced.lines(),
        "tokens_per_second": speed,
        "rounds": rates,
        "natprec_over": {
            kind: {name: found["natprec"] / rate for name, rate in found.items() if name != "natprec"}
            for kind, found in speed.items()
        },
        "resident_bytes": quantized.resident_bytes,
        "resident_over_bfloat16": quantized.resident_bytes / runs["bfloat16"].resident_bytes,
        "greedy": same_text(quantized, reference),
        "where": where(quantized),
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
