"""KL at one size, without transforms, with channels rescaled, and with what can be rotated rotated.

    python scripts/rotated.py --large 20 --at norms
    python scripts/rotated.py --model smollm2-135m --untie --data valid.txt --eval-data test.raw.txt --tokens 2048

Without a model: a random llama whose residual stream has three channels that are so many times as large as the others;
what reads them makes them small again, the norms or the Linears behind them. Of a model whose head is tied,
`--untie` judges a copy with a head of its own, so that its residual stream can be rotated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import natprec
from natprec.config import TRANSFORMS
from natprec.models.loading import load_model

READERS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
WRITERS = ("o_proj", "down_proj")
CHANNELS = [5, 40, 77]


def random_llama(factor: float, at: str) -> Any:
    """4 blocks of 128 channels; the function depends on the factor and not on where it is taken back."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, tie_word_embeddings=False, initializer_range=0.06,
        )
    )  # fmt: skip
    with torch.no_grad():
        for name, module in model.named_modules():
            leaf = name.rpartition(".")[2]
            if leaf in WRITERS:
                module.weight[CHANNELS] *= factor
            elif isinstance(module, nn.Embedding):
                module.weight[:, CHANNELS] *= factor
            elif leaf in READERS and at == "linears":
                module.weight[:, CHANNELS] /= factor
            elif "norm" in leaf and at == "norms":
                module.weight[CHANNELS] /= factor
    return model


def main() -> None:
    """One row per way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--untie", action="store_true")
    parser.add_argument("--large", type=float, default=20)
    parser.add_argument("--at", choices=("norms", "linears"), default="norms")
    parser.add_argument("--data")
    parser.add_argument("--eval-data")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--bits", type=float, default=4.3)
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--activations", default="16")
    options = parser.parse_args()
    tokenizer, data, held_out = None, options.data, options.eval_data
    if options.model:
        loaded = load_model(options.model)
        model, tokenizer = loaded.model, loaded.tokenizer
        if options.untie and model.config.tie_word_embeddings:
            model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
            model.config.tie_word_embeddings = False
    else:
        model = random_llama(options.large, options.at)
        data, held_out = (_tokens(options.tokens, seed) for seed in (0, 1))
    for transforms in TRANSFORMS:
        measurement = natprec.measure(
            model, tokenizer, data, tokens=options.tokens, transforms=transforms, rounding=options.rounding,
            sites="weights" if options.activations == "16" else "all",
        )  # fmt: skip
        plan = measurement.solve(bits=options.bits, activations=options.activations)
        quantized = plan.apply(model, tokenizer, data, tokens=options.tokens)
        with tempfile.TemporaryDirectory() as name:
            natprec.save(quantized, Path(name) / "checkpoint")
            found = natprec.verify(Path(name) / "checkpoint", model, held_out, tokenizer, tokens=options.tokens)
        row = {"transforms": transforms, "predicted": plan.kl_predicted, "kl": found.kl_mean, "ci95": found.kl_ci95}
        print(json.dumps(row), flush=True)


def _tokens(count: int, seed: int) -> Tensor:
    return torch.randint(512, (count // 64, 64), generator=torch.Generator().manual_seed(seed))


if __name__ == "__main__":
    main()
