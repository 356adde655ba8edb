"""`natprec compare`: options in, a table or JSON out."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Annotated

from natprec.commands.options import Json, Resume, configured, own
from natprec.comparison.methods import DEFAULT, METHODS, MODULES, parse_interpreters, parse_methods, parse_widths
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import METHOD, OUTPUT, TARGET

SPACED = DEFAULT.replace(",", ", ")

EXAMPLES = (
    "natprec compare --model ./folder --methods gptq,autoround,natprec --out compared",
    "natprec compare --model ./pipeline --component transformer --methods sdnq,gguf,natprec --out compared",
)


@configured
def compare(
    config: QuantizeConfig,
    methods: Annotated[
        str | None,
        own(
            "--methods",
            METHOD,
            f"Names separated by commas, or all; default: {SPACED}; of a model that reads no text, all.",
        ),
    ] = None,
    bits: Annotated[str, own("--bits", TARGET, "Bit widths of the uniform methods: 4, or several: 3,4.")] = "4",
    activations: Annotated[
        int, own("--activations", METHOD, "Bits of the inputs of Linears in all rows: 16, 8 or 4, by token.")
    ] = 16,
    iterations: Annotated[int, own("--iterations", METHOD, "AutoRound's steps per block.")] = 200,
    python: Annotated[
        list[str] | None,
        own("--python", METHOD, "Python with the other quantizers installed; METHOD=PATH for one of them."),
    ] = None,
    seeds: Annotated[int, own("--seeds", METHOD, "How often each row of natprec runs, with other seeds.")] = 1,
    time_limit: Annotated[float, own("--time-limit", METHOD, "Maximum seconds per method.")] = 21600.0,
    out: Annotated[Path | None, own("--out", OUTPUT, "Folder for checkpoints, logs, table and plot.")] = None,
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Compare natprec with other quantizers on one model, text and number of stored bytes.

    natprec gets the bytes of the uniform checkpoint; for a model that reads no text, those of each method in turn. A
    method that fails says why in its row. Exit code 0.
    """
    from rich.console import Console

    from natprec.commands.output import print_json
    from natprec.comparison.bench import Settings
    from natprec.comparison.compare import compare as run
    from natprec.comparison.plot import plot
    from natprec.comparison.report import comparison_table
    from natprec.pipeline.early import reads_no_text
    from natprec.pipeline.request import check
    from natprec.utils.progress import Stages

    if activations not in (4, 8, 16):
        raise InputError(f"activations {activations}: methods are compared with 16, 8 or 4 bits")
    if seeds < 1:
        raise InputError(f"seeds {seeds}: each method runs at least once")
    if iterations < 1:
        raise InputError(
            f"iterations {iterations}: AutoRound takes at least one step per block; its own default is 200"
        )
    if not 0 < time_limit < math.inf:
        raise InputError(f"time-limit {time_limit:g}: give the seconds that one method may take, such as 3600")
    modules = reads_no_text(config)
    settings = Settings(
        parse_methods(methods or ("all" if modules else DEFAULT), MODULES if modules else METHODS),
        parse_widths(bits),
        iterations,
        parse_interpreters(python or []),
        time_limit,
        activations,
        seeds,
        modules,
    )
    check(config, solved=False)
    stages = Stages()
    with tempfile.TemporaryDirectory(prefix="natprec-compare-") as temporary:
        folder = out or Path(temporary)
        report = run(config, settings, folder, stages, resume)
        plotted = out is not None and plot(report, folder / "pareto.png")
    if as_json:
        print_json(report)
        return
    Console().print(comparison_table(report), highlight=False)
    if out is not None:
        print(f"written to {out}" + (", with pareto.png" if plotted else "; pip install matplotlib for the plot"))
