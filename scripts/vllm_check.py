"""Does vLLM load a checkpoint, with which kernel per layer, and does it compute what the checkpoint says?

For a machine with a GPU and vLLM: written from vLLM's sources, NOT YET RUN on one. Prints JSON: the kernel
that vLLM chose for each layer, and after each token of a text the likeliest tokens by vLLM beside natprec's own loader
in float32: the largest difference of a log-probability among them, and how often both rank the same token first. vLLM
computes in 16 bits, so hundredths of a nat are its arithmetic; a wrong scale or a guessed width shows as whole nats.

    python scripts/vllm_check.py quantized --text test.txt
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch

from natprec.evaluation.reload import load_quantized

LIKELIEST = 20


def kernels(model: Any) -> dict[str, str]:
    """Layer → method, scheme and kernel that vLLM gave it."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "quant_method", None) is not None:
            scheme = getattr(module, "scheme", None)
            parts = (module.quant_method, scheme, getattr(scheme, "kernel", None))
            found[name] = "/".join(type(part).__name__ for part in parts if part is not None)
    return found


def main() -> None:
    """Load, list kernels, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--length", type=int, default=128, help="tokens of the text")
    options = parser.parse_args()
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the model is in this process
    import vllm

    engine = vllm.LLM(
        model=str(options.folder), enforce_eager=True, max_model_len=2 * options.length, gpu_memory_utilization=0.5
    )
    chosen = engine.apply_model(kernels)[0]
    text = options.text.read_text(encoding="utf-8")[: 8 * options.length]
    ids = engine.get_tokenizer()(text).input_ids[: options.length]
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=LIKELIEST)
    (reply,) = engine.generate([{"prompt_token_ids": ids}], sampling)
    with torch.no_grad():
        expected = load_quantized(options.folder)(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    largest, agreed = 0.0, 0
    for place, found in enumerate(reply.prompt_logprobs[1:]):
        largest = max(largest, *(abs(each.logprob - float(expected[place, token])) for token, each in found.items()))
        agreed += max(found, key=lambda token: found[token].logprob) == int(expected[place].argmax())
    result = {
        "folder": str(options.folder),
        "vllm": vllm.__version__,
        "gpu": torch.cuda.get_device_name(),
        "kernels": chosen,
        "tokens": len(ids),
        "log_probability_difference_max": largest,
        "same_top_token": agreed / (len(ids) - 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
