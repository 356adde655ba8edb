"""Does vLLM load a checkpoint, with which kernel per layer, and does it compute what the checkpoint says?

For a machine with a GPU and vLLM 0.25.1. Two processes: vLLM 0.25.1 pins compressed-tensors 0.17, natprec's loader
needs 0.18 or later (3, 5, 6 and 7 bits are packed otherwise since). Prints JSON: the kernel that vLLM chose for each
layer, and after each token of a text the likeliest tokens by vLLM beside natprec's own loader in float32: the largest
difference of a log-probability among them, and how often both rank the same token first. vLLM computes in 16 bits, so
tenths of a nat are its arithmetic (0.49 at most on an H200); a wrong scale or a guessed width shows as whole nats.

    python scripts/vllm_check.py quantized --text test.txt --reference reference.safetensors     anywhere, once
    python scripts/vllm_check.py quantized --reference reference.safetensors                      with vLLM
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

LIKELIEST = 20
"""As many as vLLM gives unless `max_logprobs` is raised."""


def kernels(model: Any) -> dict[str, str]:
    """Layer → method, scheme and kernel that vLLM gave it."""
    found = {}
    for name, module in model.named_modules():
        if getattr(module, "quant_method", None) is not None:
            scheme = getattr(module, "scheme", None)
            parts = (module.quant_method, scheme, getattr(scheme, "kernel", None))
            found[name] = "/".join(type(part).__name__ for part in parts if part is not None)
    return found


def write_reference(folder: Path, text: str, length: int, file: Path) -> None:
    """Token ids and their log-probabilities by natprec's loader, float32."""
    from transformers import AutoTokenizer

    from natprec.checkpoints.dense_reader import load_quantized

    ids = torch.tensor(
        AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(text[: 8 * length]).input_ids[:length]
    )
    with torch.no_grad():
        expected = load_quantized(folder)(input_ids=ids.unsqueeze(0)).logits[0].float().log_softmax(-1)
    save_file({"ids": ids, "log_probabilities": expected.contiguous()}, file)


def main() -> None:
    """Load, list kernels, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--text", type=Path, help="write the reference instead of running vLLM")
    parser.add_argument("--length", type=int, default=128, help="tokens of the text")
    options = parser.parse_args()
    if options.text is not None:
        text = options.text.read_text(encoding="utf-8")
        write_reference(options.folder, text, options.length, options.reference)
        return
    reference = load_file(options.reference)
    ids, expected = reference["ids"].tolist(), reference["log_probabilities"]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # so that the model is in this process
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    import vllm

    engine = vllm.LLM(
        model=str(options.folder),
        enforce_eager=True,
        max_model_len=2 * len(ids),
        max_num_batched_tokens=2048,
        gpu_memory_utilization=0.5,
        attention_backend="TRITON_ATTN",
        kernel_config={"enable_flashinfer_autotune": False},
    )
    chosen = engine.apply_model(kernels)[0]
    sampling = vllm.SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=LIKELIEST)
    (reply,) = engine.generate([{"prompt_token_ids": ids}], sampling)
    largest, agreed = 0.0, 0
    for place, found in enumerate(reply.prompt_logprobs[1:]):
        largest = max(largest, *(abs(each.logprob - float(expected[place, token])) for token, each in found.items()))
        agreed += max(found, key=lambda token: found[token].logprob) == int(expected[place].argmax())
    result = {
        "folder": str(options.folder),
        "vllm": vllm.__version__,
        "gpu": torch.cuda.get_device_name(),
        "kernels": chosen,
        "kernel_counts": dict(Counter(chosen.values())),
        "tokens": len(ids),
        "log_probability_difference_max": largest,
        "same_top_token": agreed / (len(ids) - 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
