"""What a file may say: plain values (of JSON, of TOML) against the types that a dataclass gives its own fields.

    kl: Annotated[float, Within(0)]                    a range
    format: Annotated[Format, Named(parse_format)]     a name that stands for something
    fused_group: Annotated[str, Called("unit")]        a key that is another word than the field

`read` returns the record, or says in one sentence which field of which file is wrong, what it is, what it must be, and
how to go on. A bool is no number, a whole number may stand for a fraction, NaN and infinity are no numbers at all. A
field that is an option (`natprec.utils.options`) keeps the option's own rule. Fields with a default may be left out,
unknown ones may not be there. What a record's `to_json` writes beside its fields follows from them: it may be left out
too, and must not contradict them.
"""

from __future__ import annotations

import difflib
import functools
import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, asdict, dataclass, fields, is_dataclass, replace
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from natprec.errors import InputError, unknown
from natprec.utils.options import Option

WHOLE = 2**63
"""Whole numbers are smaller: they fit into 64 bits."""

LARGE = 1e100
"""Numbers are no larger: their products and sums stay finite."""

_WORDS = {bool: "true or false", int: "a whole number", float: f"a number up to {LARGE:g}", str: "text"}


@dataclass(frozen=True)
class Within:
    """The range of a number; with `above` its low end is no part of it."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in it."""
        return self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        if self.above:
            return f"above {self.low:g}"
        return f"{self.low:g} or more" if self.high == math.inf else f"from {self.low} to {self.high}"


@dataclass(frozen=True)
class Among:
    """One of these names."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Named:
    """Text that `parse` turns into a value, or refuses with an InputError."""

    parse: Callable[[str], Any]


@dataclass(frozen=True)
class Called:
    """The key of a field in files and in `--json`, where that is another word than its name: scripts rely on it."""

    key: str


Count = Annotated[int, Within(0)]
Positive = Annotated[int, Within(1)]
Above0 = Annotated[float, Within(0, above=True)]
From0 = Annotated[float, Within(0)]
Bits = Annotated[int, Within(1, 16)]
Seed = Annotated[int, Within(0, WHOLE - 1)]


@dataclass(frozen=True)
class Place:
    """Where a value stands.

    Attributes:
        file: what it is, and which.
        remedy: what to do about a value that cannot be.
        field: the way to it, empty for the file as a whole.
    """

    file: str
    remedy: str
    field: str = ""

    def within(self, name: str) -> Place:
        """A field of this record."""
        return replace(self, field=f"{self.field}.{name}" if self.field else name)

    def at(self, key: str | int) -> Place:
        """An entry of this table or list."""
        return replace(self, field=f"{self.field}[{key!r}]")

    def wrong(self, what: str) -> InputError:
        """The error that says `what` of this place."""
        return InputError(f"{self.file}: {self.field + ' ' if self.field else ''}{what}; {self.remedy}")

    def unlike(self, value: Any, expected: str) -> InputError:
        """The error for a value that is not what is expected."""
        return self.wrong(f"is {shown(value)}, and must be {expected}")


def shown(value: Any) -> str:
    """A value for a message: short, however long or deep it is."""
    return reprlib.repr(value)


def read(hint: Any, value: Any, place: Place) -> Any:
    """A plain value as what a type hint says.

    Args:
        hint: bool, int, float, str, Any, a Literal, a dataclass; lists, tuples, and dicts by text, of these; each also
            `| None`, or annotated with `Within`, `Among`, `Named` or `Called`.
    Raises:
        InputError: names the place, the value, and what is expected.
    """
    kind, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if kind in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (hint,) = (each for each in inner if each is not NoneType)
        return read(hint, value, place)
    if kind is Annotated:
        return _annotated(inner[0], inner[1:], value, place)
    if kind is Literal:
        return _among(value, inner, place)
    if kind is list or (kind is tuple and inner[-1] is Ellipsis):
        if not isinstance(value, list):
            raise place.unlike(value, "a list")
        return kind(read(inner[0], each, place.at(number)) for number, each in enumerate(value))
    if kind is tuple:
        if not isinstance(value, list) or len(value) != len(inner):
            raise place.unlike(value, f"a list of {len(inner)}")
        return tuple(read(own, value[number], place.at(number)) for number, own in enumerate(inner))
    if kind is dict:
        if not isinstance(value, dict):
            raise place.unlike(value, "an object")
        return {key: read(inner[1], each, place.at(key)) for key, each in value.items()}
    return _record(hint, value, place) if is_dataclass(hint) and isinstance(hint, type) else _scalar(hint, value, place)


def _scalar(hint: Any, value: Any, place: Place) -> Any:
    if hint is float and type(value) in (int, float) and abs(value) <= LARGE:
        return float(value)
    if type(value) is hint and hint is not float and (hint is not int or abs(value) < WHOLE):
        return value
    raise place.unlike(value, _WORDS[hint])


def _annotated(hint: Any, rules: tuple[Any, ...], value: Any, place: Place) -> Any:
    for rule in rules:
        if isinstance(rule, Named):
            try:
                return rule.parse(read(str, value, place))
            except InputError as error:
                raise error if place.file in str(error) else place.wrong(f"is {shown(value)}: {error}") from None
        if isinstance(rule, Among):
            return _among(value, rule.names, place)
    found = read(hint, value, place)
    for rule in rules:
        if isinstance(rule, Within) and not rule.holds(found):
            raise place.unlike(value, f"{_WORDS[hint]}, {rule}")
    return found


def _among(value: Any, names: tuple[Any, ...], place: Place) -> Any:
    if not isinstance(value, str) or value not in names:
        raise place.wrong(f"is an {unknown('name', str(value)[:40], names)}")
    return value


def _field(field: Field[Any], hint: Any, value: Any, place: Place) -> Any:
    found = read(hint, value, place)
    if isinstance(option := field.metadata.get("option"), Option):
        try:
            replace(option, flag=option.flag or field.name).refuse(found)
        except InputError as error:
            raise place.wrong(f"cannot be: {error}") from error
    return found


@functools.cache
def _hints(kind: type) -> Mapping[str, Any]:
    return get_type_hints(kind, include_extras=True)


@functools.cache
def keys(kind: type) -> Mapping[str, str]:
    """Name of each field of a record → its key in files."""
    found = {}
    for name, hint in _hints(kind).items():
        rules = hint.__metadata__ if get_origin(hint) is Annotated else ()
        found[name] = next((rule.key for rule in rules if isinstance(rule, Called)), name)
    return {each.name: found[each.name] for each in fields(kind)}


def written(record: Any) -> dict[str, Any]:
    """A record of plain values as files hold it, the inverse of `read`."""
    kind: type = type(record)
    plain = asdict(record)
    return {key: plain[name] for name, key in keys(kind).items()}


def _record(kind: type, value: Any, place: Place) -> Any:
    if not isinstance(value, dict):
        raise place.unlike(value, "an object")
    own = {keys(kind)[each.name]: each for each in fields(kind)}
    beside = value.keys() - own.keys()
    for name, each in own.items():
        if name not in value and each.default is MISSING and each.default_factory is MISSING:
            near = difflib.get_close_matches(name, beside, n=1)
            raise place.wrong(f"lacks {name!r}" + (f" (it has {near[0]!r})" if near else ""))
    made = kind(
        **{
            each.name: _field(each, _hints(kind)[each.name], value[key], place.within(key))
            for key, each in own.items()
            if key in value
        }
    )
    follows = made.to_json() if beside and hasattr(made, "to_json") else {}
    for name in sorted(beside):
        if name not in follows:
            raise place.wrong(f"has an {unknown('key', name, own.keys() | follows.keys())}")
        if value[name] != follows[name]:
            raise place.within(name).wrong(
                f"is {shown(value[name])}, and from the other fields follows {shown(follows[name])}: leave it out"
            )
    return made
