"""`natprec generate`: a checkpoint writes text, in its low-bit form."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natprec.commands.options import Json, configured, own
from natprec.config import QuantizeConfig
from natprec.utils.options import METHOD, OUTPUT, TEXT

if TYPE_CHECKING:
    from natprec.runtime.load import Runnable

EXAMPLES = ('natprec generate quantized --prompt "Why is the sky blue?" --greedy --explain',)


@configured
def generate(
    config: QuantizeConfig,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint in compressed-tensors format.")],
    prompt: Annotated[str, own("--prompt", TEXT, "What the model answers, or goes on from if it does not chat.")],
    max_new_tokens: Annotated[int, own("--max-new-tokens", TEXT, "Stop after so many.")] = 128,
    greedy: Annotated[bool, own("--greedy", METHOD, "Always the likeliest token, instead of drawing.")] = False,
    seed: Annotated[int, own("--seed", METHOD, "Of what is drawn.")] = 0,
    explain: Annotated[bool, own("--explain", OUTPUT, "Say which kernel runs each layer, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Run a checkpoint on its codes and write text, on the CPU or a GPU.

    Nothing is decompressed at load: weights stay at their bits.
    """
    from natprec.commands.output import print_json
    from natprec.runtime.generate import generate as run
    from natprec.runtime.load import load
    from natprec.utils.human import human_bytes
    from natprec.utils.records import without_places
    from natprec.utils.seeds import check_seed

    check_seed(seed)
    runnable = load(folder, device=config.device, trust_remote_code=config.trust_remote_code)
    written = run(
        runnable, prompt, max_new_tokens=max_new_tokens, greedy=greedy, seed=seed,
        on_text=(lambda text: None) if as_json else _show,
    )  # fmt: skip
    if as_json:
        result = {
            "text": written.text,
            "prompt_tokens": written.prompt_tokens,
            "new_tokens": len(written.tokens),
            "tokens_per_second": written.tokens_per_second,
            "prefill_tokens_per_second": written.prefill_tokens_per_second,
            "resident_bytes": runnable.resident_bytes,
            "kernels": {name: chosen.kernel for name, chosen in runnable.kernels.items()},
        }
        if explain:
            result["explanation"] = [without_places(line) for line in explanation(runnable)]
        print_json(result)
        return
    print()
    speed = "" if written.tokens_per_second is None else f", {written.tokens_per_second:.1f} tokens per second"
    print(
        f"\n{len(written.tokens)} tokens{speed}; prompt of {written.prompt_tokens} at "
        f"{written.prefill_tokens_per_second:.0f} per second; {human_bytes(runnable.resident_bytes)} in memory"
    )
    if explain:
        print("\n".join(explanation(runnable)))


def explanation(runnable: Runnable) -> list[str]:
    """One line for each kernel and format: how many layers, the first of them, and why no other kernel; then
    what runs otherwise than transformers' modules.
    """
    alike = Counter(runnable.kernels.values())
    first = {chosen: name for name, chosen in reversed(runnable.kernels.items())}
    kernels = [
        f"{chosen.kernel} runs {count} of {chosen.format}, first {first[chosen]}"
        + (f" ({chosen.why})" if chosen.why else "")
        for chosen, count in alike.items()
    ]
    return kernels + runnable.replaced.lines()


def _show(text: str) -> None:
    print(text, end="", flush=True)
