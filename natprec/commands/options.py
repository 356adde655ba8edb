"""The options of the command line, each once: its flag, its panel in --help, its text."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from natprec.errors import InputError
from natprec.formats import CHANNEL
from natprec.formats.engines import PROFILES
from natprec.roundings import HELP as ROUNDING_HELP

MODEL, TARGET, TEXT, METHOD, OUTPUT = "Model", "Target: one of these", "Text", "Method", "Output"


def option(flag: str, panel: str, text: str) -> Any:
    """An option in a panel of --help."""
    return typer.Option(flag, rich_help_panel=panel, help=text)


Model = Annotated[str, option("--model", MODEL, "Hub id, folder, .gguf file, smollm2-135m or all-minilm-l6-v2.")]
Device = Annotated[str, option("--device", MODEL, "Where to compute: cpu, cuda, cuda:1.")]
Trust = Annotated[bool, option("--trust-remote-code", MODEL, "Run Python code that comes with the model.")]
WeightsOption = Annotated[
    str, option("--weights", MODEL, "memory; disk: one block in memory at a time; auto: disk where it is too large.")
]
Eps = Annotated[
    float | None,
    option("--eps", TARGET, "KL to lose, nats per token; of encoders ‖e - e'‖² per text."),
]
Bits = Annotated[float | None, option("--bits", TARGET, "Stored bits per quantized weight, scales included.")]
MaxSize = Annotated[float | None, option("--max-size", TARGET, "Bytes of the whole checkpoint on disk.")]
ScopeOption = Annotated[
    Literal["model", "site"], option("--eps-scope", TARGET, "Share eps over the model, or give it to each site.")
]
Data = Annotated[
    str | None,
    option("--data", TEXT, "To measure on: .txt, .jsonl, .csv, .parquet, hub dataset; else the model writes it."),
]
EvalData = Annotated[str | None, option("--eval-data", TEXT, "To judge on; else another part of --data.")]
Column = Annotated[str | None, option("--text-column", TEXT, "Column that holds the text, or conversations.")]
Tokens = Annotated[int, option("--tokens", TEXT, "Calibration tokens.")]
EvalTokens = Annotated[int, option("--eval-tokens", TEXT, "Held-out tokens.")]
Length = Annotated[int, option("--sequence-length", TEXT, "Tokens per sequence.")]
GroupSize = Annotated[str, option("--group-size", METHOD, "32, 64, 128, channel, or auto: all that fit compete.")]
Engine = Annotated[str, option("--engine", METHOD, f"What must run it: {', '.join(PROFILES)}.")]
EstimatorOption = Annotated[str, option("--estimator", METHOD, "fisher (one sweep) or exact (replay; slow).")]
DistortionOption = Annotated[
    str | None,
    option("--distortion", METHOD, "What eps is of: kl, kl-top10, loss; embedding, embedding-cls."),
]
RoundingOption = Annotated[str, option("--rounding", METHOD, ROUNDING_HELP)]
TransformsOption = Annotated[
    str,
    option(
        "--transforms",
        METHOD,
        "auto: rescale channels before GPTQ where that leaves less KL; rotate: Hadamard first; none.",
    ),
]
Refine = Annotated[
    int, option("--refine", METHOD, "Steps of gradient descent on the scales after rounding; 30 are plenty. Slow.")
]
SitesOption = Annotated[
    str, option("--sites", METHOD, "weights, or all: inputs of Linears, residual stream, keys and values too.")
]
Activations = Annotated[
    str,
    option("--activations", METHOD, "Bits of the inputs of Linears: 16, 8 (W8A8, W4A8 …), 4, or auto: both operands."),
]
KV = Annotated[str, option("--kv", METHOD, "Bits of keys and values in the cache: 16, or 8 (float8 in vllm).")]
EpsBwd = Annotated[
    float | None,
    option("--eps-bwd", TARGET, "For training on it: of each site's gradient, the share that its width may lose."),
]
ArithmeticOption = Annotated[
    str, option("--arithmetic", METHOD, "Of products that serve averages: bfloat16, float32, or auto: the faster one.")
]
PlannedEngine = Annotated[
    str | None, option("--engine", METHOD, f"{', '.join(PROFILES)}; default: the one measured for.")
]
PlannedRounding = Annotated[str | None, option("--rounding", METHOD, "Default: the one measured or planned for.")]
Seed = Annotated[int, option("--seed", METHOD, "Of random signs, sampled text and intervals.")]
Overwrite = Annotated[bool, option("--overwrite", OUTPUT, "Replace an existing output.")]
Resume = Annotated[bool, option("--resume", OUTPUT, "Go on from what a killed or refused run has measured.")]
DryRun = Annotated[bool, option("--dry-run", OUTPUT, "Say memory and time, and stop.")]
Json = Annotated[bool, option("--json", OUTPUT, "Print one JSON object and nothing else on standard output.")]


def parse_group_size(text: str) -> int | None:
    """A number, `channel` (one scale per row) or `auto` (None: all sizes that fit compete).

    Raises:
        InputError: anything else.
    """
    if text == "auto":
        return None
    if text == "channel":
        return CHANNEL
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise InputError(f"group size {text!r}: give 32, 64, 128, channel or auto")
