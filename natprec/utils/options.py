"""What an option is: the metadata of a field of `natprec.config.QuantizeConfig`, and the checks of one value alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from natprec.errors import InputError, unknown
from natprec.utils.seeds import check_seed

MODEL, TARGET, TEXT, METHOD, OUTPUT, MACHINE = "Model", "Target", "Text", "Method", "Output", "Machine"
"""The panels of --help."""

Check = Callable[[str, Any], None]
"""Given the option's name and a value; raises InputError."""


@dataclass(frozen=True)
class Option:
    """What a field says of itself.

    Attributes:
        panel, help: where --help shows it, and its text.
        flag: on the command line; default: the field's name.
        choices: all values, where they are names.
        check: refuses values out of range.
        parse: from the text on the command line, where the field's type is another; a recipe may give a number instead.
        text: the default as the command line shows it, where `parse` is given.
        required: whether the command line needs it; optional: whether it may be None.
    """

    panel: str
    help: str
    flag: str = ""
    choices: Collection[str] = ()
    check: Check | None = None
    parse: Callable[[str], Any] | None = None
    text: str | None = None
    required: bool = False
    optional: bool = False

    def refuse(self, value: Any) -> None:
        """Refuse what the option cannot be.

        Raises:
            InputError: an unknown name, with the nearest, or a number out of range.
        """
        name = self.flag.removeprefix("--")
        if value is None and self.optional:
            return
        if self.choices and value not in self.choices:
            raise unknown(name, str(value), self.choices)
        if self.check is not None:
            self.check(name, value)


def option(default: Any, panel: str, text: str, **more: Any) -> Any:
    """A field of a configuration; `more` are attributes of `Option`. With `parse` the default is given as text."""
    parse = more.get("parse")
    made = Option(panel, text, **more, text=default if parse else None, optional=default is None)
    return dataclasses.field(default=parse(default) if parse else default, metadata={"option": made})


def options_of(configuration: type) -> dict[str, Option]:
    """Field name → option, with its flag."""
    made = {field.name: field.metadata["option"] for field in dataclasses.fields(configuration)}
    return {
        name: each if each.flag else dataclasses.replace(each, flag="--" + name.replace("_", "-"))
        for name, each in made.items()
    }


MOST_TOKENS = 10**12
"""That are learned from."""

MOST_ROUNDS = 10_000
"""In which anything is timed."""


def positive(name: str, value: float | None) -> None:
    """Raises InputError for zero, negative numbers, NaN and infinity."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(f"{name} {value}: give a positive number")


def rounds(name: str, value: int) -> None:
    """Raises InputError for a number of repetitions below 1, and for one that nobody waits for."""
    if not 0 < value <= MOST_ROUNDS:
        raise InputError(f"{name} {value}: give a number from 1 to {MOST_ROUNDS}")


def tolerance(name: str, value: float | None) -> None:
    """The same, for a tolerance: the message says what one is."""
    if value is not None and not (math.isfinite(value) and value > 0):
        raise InputError(
            f"{name} {value}: a tolerance is a positive number (nats per token, where D is KL), for example 0.05"
        )


def count(name: str, value: int) -> None:
    """Raises InputError for a negative number of tokens, and for one that nobody lives to see read."""
    if not 0 <= value <= MOST_TOKENS:
        raise InputError(f"{name} {value}: give a number of tokens up to {MOST_TOKENS}, or 0 for none")


def seed(name: str, value: int) -> None:
    """Raises InputError for what no generator here takes."""
    check_seed(value)


def sequence(name: str, value: int) -> None:
    """Raises InputError for a length that is no sequence."""
    positive(name, value)
    if value < 2:
        raise InputError(f"{name} {value}: a sequence needs at least 2 tokens; 256 is usual")


def fraction(name: str, value: float | None) -> None:
    """Raises InputError for anything but a number from 0 up to 1, and for 1 itself."""
    if value is not None and not 0 <= value < 1:
        raise InputError(f"{name} {value}: give a number from 0 up to, but not including, 1")


def probability(name: str, value: float) -> None:
    """Raises InputError for anything but a number between 0 and 1."""
    if not 0 < value < 1:
        raise InputError(f"{name} {value}: give a number between 0 and 1, for example 0.95")
