"""`natprec generate`: a checkpoint writes text, in its low-bit form."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from natprec.commands.options import Json, configured, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import METHOD, OUTPUT, TEXT
from natprec.utils.streams import nobody_reads

if TYPE_CHECKING:
    from natprec.runtime.chat import Chat
    from natprec.runtime.load import Runnable

TOKENS, CHAT_TOKENS = 128, 1024
"""New tokens of an answer where no number is given."""

EXAMPLES = (
    "natprec generate quantized",
    'natprec generate quantized --prompt "Why is the sky blue?" --greedy --explain',
)


@configured
def generate(
    config: QuantizeConfig,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR|ID", help="Checkpoint in compressed-tensors format, or its Hub id.")
    ],
    prompt: Annotated[
        str | None,
        own("--prompt", TEXT, "Prompt; default: a chat, or standard input if that is not a terminal."),
    ] = None,
    system: Annotated[str | None, own("--system", TEXT, "System prompt.")] = None,
    max_new_tokens: Annotated[
        int | None, own("--max-new-tokens", TEXT, "End each answer after so many tokens; default: 128, in a chat 1024.")
    ] = None,
    greedy: Annotated[bool, own("--greedy", METHOD, "Always take the most likely token.")] = False,
    temperature: Annotated[
        float | None, own("--temperature", METHOD, "Sampling temperature; default: the checkpoint's.")
    ] = None,
    top_p: Annotated[
        float | None,
        own(
            "--top-p",
            METHOD,
            "Sample from the most likely tokens that have this total probability; default: the checkpoint's.",
        ),
    ] = None,
    seed: Annotated[int, own("--seed", METHOD, "Random seed.")] = 0,
    explain: Annotated[bool, own("--explain", OUTPUT, "Say which kernel runs each layer, and why.")] = False,
    as_json: Json = False,
) -> None:
    """Run a checkpoint on its codes, on the CPU or a GPU: answer a prompt, or chat.

    Nothing is decompressed at load: weights stay at their bits. In a chat, /clear forgets the conversation and /exit
    (or Ctrl-D) ends it.
    """
    from natprec.commands.output import print_json
    from natprec.models.devices import limit_gpu_memory
    from natprec.runtime.chat import Chat
    from natprec.runtime.generate import Sampling
    from natprec.runtime.generate import generate as run
    from natprec.runtime.load import load
    from natprec.utils.human import human_bytes
    from natprec.utils.records import without_places

    sampling = Sampling(greedy, temperature, top_p, seed)
    sampling.check()
    prompt = _piped() if prompt is None else prompt
    for option, text in (("prompt", prompt), ("system", system)):
        if text is not None and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise InputError(f"{option} {text!r:.60} is not UTF-8; convert it: iconv -t utf-8")
    if prompt is None and as_json:
        raise InputError("--json answers one prompt; give --prompt, or text on standard input")
    limit_gpu_memory(config.device, config.gpu_memory)
    runnable = load(folder, device=config.device, trust_remote_code=config.trust_remote_code)
    if prompt is None:
        if explain:
            print("\n".join(explanation(runnable)))
        converse(Chat(runnable, max_new_tokens or CHAT_TOKENS, sampling, system))
        return
    asked = prompt if system is None else [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
    written = run(
        runnable, asked, max_new_tokens=TOKENS if max_new_tokens is None else max_new_tokens, greedy=greedy, seed=seed,
        temperature=temperature, top_p=top_p, on_text=(lambda text: None) if as_json else _show,
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


def _piped() -> str | None:
    """All of standard input, unless it is a terminal.

    Raises:
        InputError: it is not UTF-8.
    """
    if sys.stdin.isatty():
        return None
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 ({error.reason}); convert it: iconv -t utf-8") from error


def converse(chat: Chat) -> None:
    """Read turns from the terminal and answer them, until /exit or the end of the input."""
    from natprec.runtime.generate import refuse_silent

    refuse_silent(chat.runnable)
    print("/exit ends the chat, /clear forgets it", file=sys.stderr)
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        if text == "/exit":
            return
        if text == "/clear":
            chat.turns = []
        elif text:
            cut = chat.cut
            try:
                chat.say(text, _show)
            except InputError as error:
                print(error, file=sys.stderr)
            except KeyboardInterrupt:
                print("\nstopped; /exit ends the chat", file=sys.stderr)
            print()
            if chat.cut > cut:
                print("the oldest turns were forgotten: the context is full", file=sys.stderr)


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
    if nobody_reads():
        raise typer.Exit
