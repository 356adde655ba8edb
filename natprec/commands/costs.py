"""`natprec costs`: how long products take on this machine, as a table for `natprec solve --minimize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from natprec.commands.options import DryRun, Json, Overwrite, Resume, configured, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError, unknown
from natprec.utils.options import METHOD, MODEL, OUTPUT, rounds

if TYPE_CHECKING:
    from natprec.costs.model import Product

EXAMPLES = (
    "natprec costs --engine natprec --measurement folder.measurement --out costs.toml",
    "natprec costs --engine natprec --formats int4-g64,int8-channel --shapes 4096x4096,14336x4096 --out costs.toml",
    "natprec costs --engine vllm --gpu H200 --measurement folder.measurement --tokens 1,512 --out costs.toml",
)

SHAPES = "1024x1024,4096x1024,1024x4096,4096x4096"


@configured
def costs(
    config: QuantizeConfig,
    measurement: Annotated[
        Path | None, own("--measurement", MODEL, "The formats and shapes that plans of this file may ask for.")
    ] = None,
    whole: Annotated[
        list[Path] | None,
        own("--whole", MODEL, "Checkpoint of the model; what a token takes beside its products. May be repeated."),
    ] = None,
    formats: Annotated[
        str | None,
        own("--formats", METHOD, "With commas; inputs behind a slash; default: symmetric integers."),
    ] = None,
    shapes: Annotated[str | None, own("--shapes", METHOD, f"Outputs x inputs, with commas; default: {SHAPES}.")] = None,
    tokens: Annotated[
        str, own("--tokens", METHOD, "Tokens at once, with commas; 1 and 512 are what solve asks for.")
    ] = "1",
    repeat: Annotated[int, own("--repeat", METHOD, "Rounds; the median of a product's rounds is kept.")] = 15,
    cpu_time: Annotated[
        bool, own("--cpu-time", METHOD, "Count this process's CPU time: where others use the machine; one thread.")
    ] = False,
    out: Annotated[Path | None, own("--out", OUTPUT, "Write the table here, TOML.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Time matrix products of an engine on this machine: medians, spread, clocks and versions, as a table of costs.

    The CPU's kernels of natprec, its Triton kernels with --gpu, or vLLM's own linear layers where vLLM is installed.
    """
    from natprec.commands.output import print_json
    from natprec.costs.write import is_table
    from natprec.timing.table import Asked, time_table
    from natprec.utils.atomic_files import refuse_existing_file
    from natprec.utils.progress import Stages

    if config.engine not in ENGINES:
        raise InputError(
            f"{unknown('engine', config.engine, ENGINES)}; of others natprec has no kernels to time: measure a "
            "table in your own way (docs/costs.md has its form)"
        )
    if out is None and not as_json and not dry_run:
        raise InputError("natprec costs writes a table; say where with --out FILE.toml, or add --json")
    if measurement is not None and (formats or shapes):
        raise InputError("--measurement says which formats and shapes; leave --formats and --shapes out")
    rounds("repeat", repeat)
    if out is not None and not dry_run:
        refuse_existing_file(out, overwrite, is_table, "table of costs")
    asked = Asked(
        config.engine, config.gpu, config.device, _numbers(tokens), repeat, cpu_time, tuple(whole or ()),
        measurement, formats, shapes or SHAPES,
    )  # fmt: skip
    if dry_run:
        _show(asked.products(), as_json)
        return
    table = time_table(asked, Stages(), out, resume)
    if as_json:
        print_json(table)
    else:
        print(f"{len(table['rows'])} costs written to {out}")


ENGINES = ("natprec", "vllm")
"""Whose products can be timed."""


def _show(products: list[Product], as_json: bool) -> None:
    from natprec.commands.output import print_json

    rows: list[dict[str, Any]] = [
        {"formats": each.formats, "rows": each.rows, "columns": each.columns, "tokens": each.tokens}
        for each in products
    ]
    if as_json:
        print_json({"products": rows})
        return
    for row in rows:
        print(f"{row['formats']:24} {row['rows']} × {row['columns']}, {row['tokens']} tokens")
    print(f"{len(rows)} products would be timed")


def _numbers(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(each) for each in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < each <= 65536 for each in found):
        raise InputError(f"tokens {text!r}: give whole numbers from 1 to 65536 with commas between, for example 1,512")
    return tuple(dict.fromkeys(found))
