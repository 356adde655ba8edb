"""LoRA on a base that natprec chose beside plain NF4 of the same bytes: loss curves, and the cosine of gradients.

    natprec measure --model smollm2-135m --engine bitsandbytes --data valid.txt --out bnb.measurement
    natprec solve bnb.measurement --bits 4.56 --out plan.json
    natprec apply plan.json --model smollm2-135m --data valid.txt --out base
    python scripts/qlora.py base --model smollm2-135m --data medicine.txt --out qlora.json

Needs `pip install 'natprec[bitsandbytes]' peft`. Each base is loaded by transformers with bitsandbytes, gets LoRA (rank
8 beside all its Linears but the head) and learns the text, 128 tokens a step, the same ones for every base; a part of
the text that it never sees gives the loss before and after. `cosine` compares, before the first step, the gradient of
LoRA's matrices with that beside the original's weights, batch by batch. Finished (base, seed) runs are kept in the
output file, and a later call goes on from there. The clock does not matter to any figure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from natprec.models.loading import load_model

RANK, TOKENS, HELD_OUT, RATE = 8, 128, 32, 2e-4
"""Of LoRA; a step's tokens; sequences that judge; Adam's step."""
COSINES = 8
"""Batches whose gradients are compared."""
SHOWN = 25
"""Steps whose mean loss is a point of the curve."""


def batches(tokenizer: Any, file: Path) -> torch.Tensor:
    """(sequences, tokens) of a text, in order."""
    ids = torch.tensor(tokenizer(file.read_text("utf-8")[:1_500_000], verbose=False).input_ids)
    return ids[: len(ids) // TOKENS * TOKENS].view(-1, TOKENS)


def opened(base: str, original: Path) -> Any:
    """A base with LoRA: `original`, `nf4`, `nf4-dq`, or a folder; LoRA's first matrices follow from torch's seed."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how: dict[str, Any] = {}
    if base in ("nf4", "nf4-dq"):
        how["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=base == "nf4-dq",
            bnb_4bit_compute_dtype=torch.float32,
        )  # fmt: skip
    folder = original if base in ("original", "nf4", "nf4-dq") else Path(base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False, **how)
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # a checkpoint says bfloat16; all bases compute alike
            module.compute_dtype = torch.float32
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    # Never `eval`: bitsandbytes would repack its weights for products in bfloat16 that have no gradient.
    return get_peft_model(model, lora).train()


def stored_bytes(base: str, original: Path) -> int:
    """Bytes of a base's parameters and of what bitsandbytes keeps of them."""
    model = opened(base, original)
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        state = getattr(parameter, "quant_state", None)
        total += parameter.numel() * (1 if state else 2)
        if state:
            total += state.absmax.numel() * state.absmax.element_size()
            total += state.state2.absmax.numel() * 4 if state.nested else 0
    return total


def gradient(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Of LoRA's matrices, one vector; those that start at zero hide the others' gradients, which are zero."""
    model.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])


@torch.no_grad()
def judged(model: Any, held_out: torch.Tensor) -> float:
    """Mean loss on text that no step sees, nats per token."""
    return statistics.fmean(float(model(input_ids=ids, labels=ids).loss) for ids in held_out.split(4))


def run(base: str, seed: int, steps: int, original: Path, text: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Train, and yield what is known so far."""
    torch.manual_seed(seed)
    model = opened(base, original)
    held_out, learned = text[:HELD_OUT], text[HELD_OUT:]
    order = torch.randperm(len(learned), generator=torch.Generator().manual_seed(seed))[:steps]
    found: dict[str, Any] = {"base": base, "seed": seed, "before": judged(model, held_out), "losses": []}
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=RATE)
    for step, index in enumerate(order.tolist()):
        loss = model(input_ids=learned[index : index + 1], labels=learned[index : index + 1]).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        found["losses"].append(float(loss.detach()))
        if step % SHOWN == SHOWN - 1:
            print(f"{base}, seed {seed}, step {step + 1}: {statistics.fmean(found['losses'][-SHOWN:]):.4f}", flush=True)
    yield {**found, "after": judged(model, held_out), "steps": steps}


def cosines(bases: list[str], original: Path, text: torch.Tensor) -> dict[str, list[float]]:
    """Base → of each batch the cosine between its gradient and the original's."""
    found: dict[str, list[torch.Tensor]] = {}
    for base in ["original", *bases]:
        torch.manual_seed(0)
        model = opened(base, original)
        found[base] = [gradient(model, text[index : index + 1]) for index in range(HELD_OUT, HELD_OUT + COSINES)]
    reference = found.pop("original")
    return {
        base: [float(torch.cosine_similarity(one, other, 0)) for one, other in zip(own, reference, strict=True)]
        for base, own in found.items()
    }


def summary(report: dict[str, Any]) -> list[str]:
    """A line for each base."""
    lines = []
    for base, own in report["cosine"].items():
        runs = [each for each in report["runs"] if each["base"] == base]
        after = ", ".join(f"{each['after']:.4f}" for each in sorted(runs, key=lambda each: each["seed"]))
        lines.append(
            f"{base}: {report['bytes'][base]} bytes, cosine {statistics.fmean(own):.4f} (least {min(own):.4f}), "
            f"held-out loss {runs[0]['before']:.4f} before, after {after}"
        )
    return lines


def main() -> None:
    """Run what is missing, then print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bases", nargs="+", help="folders; also nf4, nf4-dq (plain, of the model) or original")
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    report: dict[str, Any] = {"steps": options.steps, "runs": [], "cosine": {}, "bytes": {}}
    if options.out.exists():
        report = json.loads(options.out.read_text())
    with tempfile.TemporaryDirectory() as folder:
        original = Path(folder) / "original"
        loaded = load_model(options.model)
        loaded.model.to(torch.bfloat16).save_pretrained(original)
        text = batches(loaded.tokenizer, options.data)
        missing = [base for base in options.bases if base not in report["cosine"]]
        if missing:
            report["bytes"] |= {base: stored_bytes(base, original) for base in missing}
            report["cosine"] |= cosines(missing, original, text)
            options.out.write_text(json.dumps(report, indent=1))
        done = {(each["base"], each["seed"]) for each in report["runs"]}
        for seed in range(options.seeds):
            for base in options.bases:
                if (base, seed) not in done:
                    report["runs"] += list(run(base, seed, options.steps, original, text))
                    options.out.write_text(json.dumps(report, indent=1))
    print("\n".join(summary(report)))


if __name__ == "__main__":
    main()
