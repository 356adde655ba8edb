"""The command line, derived from `natprec.config`: a command takes a configuration, and what is its own beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_type_hints

import typer

from natprec.config import COMMANDS, OPTIONS, QuantizeConfig
from natprec.utils.options import MACHINE, MODEL, OUTPUT, TARGET

FIRST = (MODEL, TARGET)
"""Panels of --help that a user must look at."""

Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=OUTPUT, help="Replace an existing output.")]
Resume = Annotated[
    bool,
    typer.Option("--resume", rich_help_panel=OUTPUT, help="Continue from what a killed or refused run has measured."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", rich_help_panel=OUTPUT, help="Estimate memory and time, then stop.")]
Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=OUTPUT, help="Print one JSON object and nothing else on standard output."),
]

_TYPES = get_type_hints(QuantizeConfig)

LONGEST = 24
"""Columns of choices that --help shows beside a flag; longer lists stand in its text alone."""


def own(flag: str, panel: str, text: str, **more: Any) -> Any:
    """An option of one command alone, in a panel of --help."""
    return typer.Option(flag, rich_help_panel=panel, help=text, **more)


def like(name: str, text: str) -> Any:
    """The option of a configuration's field, with another text or default; a shell completes names."""
    option = OPTIONS[name]
    if not option.choices or option.parse:
        return own(option.flag, option.panel, text)
    names = list(option.choices)
    shown = "|".join(names)
    return own(
        option.flag, option.panel, text, metavar=f"<{shown if len(shown) <= LONGEST else 'name'}>",
        autocompletion=lambda incomplete: [each for each in names if each.startswith(incomplete)],
    )  # fmt: skip


def value_type(name: str) -> Any:
    """The type of a field on the command line: text if it is parsed, else the field's own."""
    return str if OPTIONS[name].parse else _TYPES[name]


def configured(function: Callable[..., None]) -> Callable[..., None]:
    """A command for typer from `function(config, …)`.

    Its options are those of the configuration that `COMMANDS` names for it, then the function's other parameters,
    which replace options of the same name.
    """
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function, include_extras=True)
    beside = {name: each for name, each in parameters.items() if name != "config"}
    shared = [name for name in COMMANDS[function.__name__] if name not in beside]

    def command(**given: Any) -> None:
        options = {name: _parsed(name, given.pop(name)) for name in shared}
        config = QuantizeConfig(**options)
        config.check_each()
        function(config, **given)

    own_ones = [
        each.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY) for name, each in beside.items()
    ]
    first = [name for name in shared if OPTIONS[name].panel in FIRST]
    last = [name for name in shared if OPTIONS[name].panel == MACHINE]
    middle = [name for name in shared if name not in {*first, *last}]
    # what a user must decide, what the command writes, and at last what can be left alone
    signature = [*map(_parameter, first), *own_ones, *map(_parameter, middle), *map(_parameter, last)]
    command.__name__, command.__doc__, command.__module__ = function.__name__, function.__doc__, function.__module__
    command.__annotations__ = {each.name: each.annotation for each in signature}
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    return command


def _parameter(name: str) -> inspect.Parameter:
    option, field = OPTIONS[name], QuantizeConfig.__dataclass_fields__[name]
    default = option.text if option.parse else field.default
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if option.required else default,
        annotation=Annotated[value_type(name), like(name, option.help)],
    )


def _parsed(name: str, value: Any) -> Any:
    parse = OPTIONS[name].parse
    return parse(value) if parse else value


def types_of(command: Callable[..., None]) -> dict[str, Any]:
    """Parameter → its type, without what typer is told of it."""
    return get_type_hints(command)
