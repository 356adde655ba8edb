"""`natprec energy`: joules of a token, measured, estimated by that name, or computed from a rate and a power."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from natprec.commands.options import Json, Overwrite, configured, like, own
from natprec.config import ROOM_KELVIN, QuantizeConfig
from natprec.errors import InputError, unknown
from natprec.utils.options import METHOD, MODEL, OUTPUT, TEXT, positive, rounds

if TYPE_CHECKING:
    from natprec.energy.protocol import Settings

EXAMPLES = (
    "natprec energy smollm2-natprec --model HuggingFaceTB/SmolLM2-135M --batch 1,16 --out energy.json",
    "natprec energy --endpoint http://127.0.0.1:8000 --batch 1,16,64 --tariff '0.30 EUR/kWh' --grid DE",
    "natprec energy --rate 20 --watts 450",
    "natprec energy --check anchors.json",
    "natprec energy --replay energy.json --counter meter.csv",
)

WIDTH = 160


@configured
def energy(
    config: QuantizeConfig,
    name: Annotated[
        str | None, typer.Argument(metavar="[DIR|MODEL]", help="Checkpoint, or a model: hub id, folder, .gguf, alias.")
    ] = None,
    model: Annotated[str | None, like("model", "The original, measured beside the checkpoint in the same run.")] = None,
    endpoint: Annotated[
        str | None, own("--endpoint", MODEL, "URL of an OpenAI-compatible server on this host; its steady state.")
    ] = None,
    batch: Annotated[str, own("--batch", TEXT, "Batch sizes, separated by commas.")] = "1,4,16,64",
    prompt_tokens: Annotated[
        int | None, own("--prompt-tokens", TEXT, "Read; default: 512, or what the context leaves.")
    ] = None,
    new_tokens: Annotated[
        int | None, own("--new-tokens", TEXT, "Written; default: 128, or what the context leaves.")
    ] = None,
    repeat: Annotated[int, own("--repeat", METHOD, "Windows of each row; 5 are the least.")] = 5,
    min_seconds: Annotated[
        float, own("--min-seconds", METHOD, "Minimum length of a window; longer if the counter is slow.")
    ] = 5.0,
    counter: Annotated[
        str, own("--counter", METHOD, "auto, nvml, rapl, zeus, FILE.csv of a meter, or none: an ESTIMATE.")
    ] = "auto",
    idle: Annotated[
        str, own("--idle", METHOD, "measured, WATTS, or ignore: what the net column leaves out.")
    ] = "measured",
    scope: Annotated[
        str | None, own("--scope", METHOD, "gpu, package, node or wall: which counter, or what FILE.csv measures.")
    ] = None,
    shared: Annotated[bool, own("--shared", METHOD, "Measure a GPU that other processes use, too.")] = False,
    inspection: Annotated[
        Path | None, own("--inspection", METHOD, "inspection.json of natprec inspect: bits erased at boundaries.")
    ] = None,
    kelvin: Annotated[float, own("--kelvin", METHOD, "Temperature of Landauer's floor.")] = ROOM_KELVIN,
    tariff: Annotated[str | None, own("--tariff", OUTPUT, "Price of energy, for example '0.30 EUR/kWh'.")] = None,
    grid: Annotated[str | None, own("--grid", OUTPUT, "Country code, or grams of CO2 per kWh.")] = None,
    pue: Annotated[
        float, own("--pue", OUTPUT, "Energy of the building over that of the machines; for cost and CO2.")
    ] = 1.0,
    rate: Annotated[float | None, own("--rate", METHOD, "Tokens per second, with --watts: arithmetic alone.")] = None,
    watts: Annotated[float | None, own("--watts", METHOD, "With --rate.")] = None,
    check: Annotated[Path | None, own("--check", METHOD, "Published rows against the floors.")] = None,
    replay: Annotated[
        Path | None, own("--replay", METHOD, "A run's energy.json, computed again with --counter.")
    ] = None,
    costs: Annotated[
        bool, own("--costs", METHOD, "Measure joules by format and shape for solve --minimize joules; --out FILE.toml.")
    ] = False,
    out: Annotated[Path | None, own("--out", OUTPUT, "Write energy.json here; with --costs a table.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Measure what a token costs: joules, tokens per watt-hour, money, CO2, beside what physics asks.

    Without a counter every figure is an interval and says ESTIMATE. Exit code 3 if --check finds a row below a floor.
    """
    from natprec.commands.output import print_json
    from natprec.energy.convert import Prices, parse_grid, parse_pue, parse_tariff

    _refuse_mixed(name=name, endpoint=endpoint, rate=rate, check=check, replay=replay)
    positive("kelvin", kelvin)
    prices = Prices(
        None if tariff is None else parse_tariff(tariff), None if grid is None else parse_grid(grid), parse_pue(pue)
    )
    if rate is not None or watts is not None:
        from natprec.energy.arithmetic import arithmetic

        found = arithmetic(_given("rate", rate), _given("watts", watts), prices)
        return _show(found, out, overwrite, as_json)
    if check is not None:
        from natprec.energy.check import check as run_check
        from natprec.energy.tables import check_lines

        found = run_check(check)
        print_json(found) if as_json else print("\n".join(check_lines(found)))
        raise typer.Exit(3 if found["faults"] else 0)
    _refuse_early(out, overwrite, costs)
    if replay is not None:
        from natprec.energy.replay import replay as run_replay

        return _show(run_replay(replay, counter, scope), out, overwrite, as_json)
    batches, windows = _batches(batch), _windows(prompt_tokens, new_tokens, repeat, min_seconds, idle)
    if name is None and endpoint is None:
        raise InputError(
            "nothing to measure: name a checkpoint or model, or give --endpoint, --rate, --check or --replay"
        )

    from natprec.energy.counters import find_counter
    from natprec.energy.inspected import erased_bits
    from natprec.energy.protocol import Settings, measure
    from natprec.energy.result import report
    from natprec.utils.progress import Stages

    settings = Settings(
        batches, prices=prices, kelvin=kelvin, seed=config.seed, device=config.device,
        trust_remote_code=config.trust_remote_code, erased_bits=None if inspection is None else erased_bits(inspection),
        **windows,
    )  # fmt: skip
    opened = find_counter(counter, device=config.device, scope=scope, shared=shared, serves=endpoint is not None)
    if costs:
        return _costs(name, settings, opened, out, as_json)
    stages = Stages()
    if endpoint is not None:
        from natprec.energy.endpoint import measure_server

        return _show(report(measure_server(endpoint, name, settings, opened, stages)), out, overwrite, as_json)
    assert name is not None
    _show(report(measure(name, model, settings, opened, stages)), out, overwrite, as_json)


def _show(found: dict[str, Any], out: Path | None, overwrite: bool, as_json: bool) -> None:
    from rich.console import Console

    from natprec.commands.output import print_json
    from natprec.energy.tables import arithmetic_lines, tables
    from natprec.utils.atomic_files import refuse_existing_file, write_json

    if out is not None:
        refuse_existing_file(out, overwrite, is_energy, "run of energy")
        write_json(out, found)
    if as_json:
        print_json(found)
    elif found["source"] == "arithmetic":
        print("\n".join(arithmetic_lines(found)))
    else:
        Console(width=max(WIDTH, Console().width)).print(tables(found), highlight=False, markup=False)
    if out is not None and not as_json:
        print(f"written to {out}")


def _costs(name: str | None, settings: Settings, opened: Any, out: Path | None, as_json: bool) -> None:
    from natprec.commands.output import print_json
    from natprec.costs.write import ENERGIES, save
    from natprec.energy.costs import measure_costs
    from natprec.utils.progress import Stages

    if name is None:
        raise InputError("costs are of a model's shapes: name a checkpoint or model")
    if out is None and not as_json:
        raise InputError("--costs writes a table; say where with --out FILE.toml, or add --json")
    table = measure_costs(name, settings, opened, Stages())
    if out is not None:
        save(table, out, ENERGIES)
    if as_json:
        print_json(table)
    else:
        print(f"{len(table['rows'])} costs written to {out}")


def is_energy(path: Path) -> bool:
    """Whether a file is a run of natprec energy, or its table of costs."""
    from natprec.costs.write import is_table
    from natprec.utils.own_files import ENERGY, what_is

    if path.suffix == ".toml":
        return is_table(path)
    return what_is(path) == f"a {ENERGY.name}"


def _refuse_mixed(**given: Any) -> None:
    """One thing at a time; a folder beside --endpoint says what is served."""
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1 and set(named) != {"name", "endpoint"}:
        flags = " and ".join("DIR|MODEL" if name == "name" else f"--{name}" for name in named)
        raise InputError(f"{flags} exclude each other; give one of them")


def _refuse_early(out: Path | None, overwrite: bool, costs: bool) -> None:
    from natprec.utils.atomic_files import refuse_existing_file

    if out is not None:
        refuse_existing_file(out, overwrite, is_energy, "table of costs" if costs else "run of energy")


def _given(name: str, value: float | None) -> float:
    if value is None:
        raise InputError("--rate and --watts go together; give both")
    positive(name, value)
    return value


def _batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(each) for each in text.split(","))
    except ValueError:
        raise InputError(f"batch {text!r}: give whole numbers with commas between, for example 1,4,16") from None
    for each in found:
        if not 0 < each <= 65536:
            raise InputError(f"batch {each}: a batch has 1 sequence or more, up to 65536")
    return tuple(dict.fromkeys(found))


def _windows(
    prompt_tokens: int | None, new_tokens: int | None, repeat: int, min_seconds: float, idle: str
) -> dict[str, Any]:
    positive("prompt-tokens", prompt_tokens)
    rounds("repeat", repeat)
    positive("min-seconds", min_seconds)
    if new_tokens is not None and new_tokens < 2:
        raise InputError(f"new-tokens {new_tokens}: decoding needs 2 or more, since the prompt gives the first")
    if idle not in ("measured", "ignore"):
        try:
            positive("idle", float(idle))
        except ValueError as error:
            raise (
                error if isinstance(error, InputError) else unknown("idle", idle, ("measured", "ignore", "WATTS"))
            ) from None
        idle = str(float(idle))
    return {
        "prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "repeat": max(5, repeat), "min_seconds": min_seconds,
        "idle": idle,
    }  # fmt: skip
