"""The promise on speech: tiny models with random weights, syllables, measured over predicted at three tolerances.

    PYTHONPATH=. python scripts/speech_promise.py [--families whisper moonshine] [--work FOLDER]

128 recordings are measured on, 104 others judge. About 25 seconds for a model on one core that is free.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from natprec.config import QuantizeConfig
from natprec.pipeline.quantize import quantize
from tests.conftest import made_up_text
from tests.speech_models import MAKERS, recordings, saved

MEASURED, JUDGING, TOKENS = 128, 256, 256 * 26
"""Recordings of both folders, and positions that judge: those of the second half of them are for a correction."""


def tokenizer() -> Any:
    """Byte-level BPE of 512 tokens, trained on made-up text, as in the tests."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([made_up_text(3000)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["whisper", "moonshine"], choices=list(MAKERS))
    parser.add_argument("--eps", nargs="+", type=float, default=[0.1, 0.03, 0.01])
    parser.add_argument("--rounding", default="gptq")
    parser.add_argument("--work", type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="natprec-") as made:
        work = asked.work or Path(made)
        shown, judging = work / "shown", work / "judging"
        recordings(shown, MEASURED)
        recordings(judging, JUDGING, first=1000)
        print("| model | eps | bits | predicted | measured (95 %) | measured / predicted | same top token |")
        print("|---|---|---|---|---|---|---|")
        for family in asked.families:
            model = saved(family, work / family, tokenizer())
            for eps in asked.eps:
                config = QuantizeConfig(
                    str(model), data=str(shown), eval_data=str(judging), eps=eps, group_size=32, arithmetic="float32",
                    engine="vllm", eval_tokens=TOKENS, rounding=asked.rounding,
                )  # fmt: skip
                _, plan, found = quantize(config, work / f"{family}-{eps}-{asked.rounding}", overwrite=True)
                (low, high), predicted = found.kl_ci95, found.kl_predicted or float("nan")
                print(
                    f"| {family} | {eps} | {plan.bits_per_weight:.2f} | {predicted:.4f} | {found.kl_mean:.4f} "
                    f"({low:.4f} to {high:.4f}) | {found.kl_mean / predicted:.2f} | {found.top1_agreement:.3f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
