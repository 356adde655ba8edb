"""What a file may say, at the edges: the last value that is taken and the first that is refused, by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from natprec.errors import InputError
from natprec.utils.options import option, positive
from natprec.utils.schema import (
    LARGE,
    WHOLE,
    Above0,
    Among,
    Bits,
    Called,
    Count,
    From0,
    Named,
    Place,
    Positive,
    Seed,
    Within,
    keys,
    read,
    shown,
    written,
)

PLACE = Place("plan 'p.json'", "solve again")


def halved(text: str) -> float:
    if not text.isdigit():
        raise InputError(f"{text!r} is no number")
    return int(text) / 2


@dataclass(frozen=True)
class Inner:
    bits: Bits
    name: Annotated[str, Called("called")] = "none"

    def to_json(self) -> dict[str, Any]:
        return written(self) | {"double": 2 * self.bits}


@dataclass(frozen=True)
class Outer:
    inner: Inner
    half: Annotated[float, Named(halved)] = 0.5
    eps: float | None = option(None, "panel", "A number.", check=positive)
    rest: dict[str, tuple[int, ...]] = field(default_factory=dict)


TAKEN: list[tuple[Any, Any, Any]] = [
    (bool, True, True), (int, WHOLE - 1, WHOLE - 1), (int, 1 - WHOLE, 1 - WHOLE), (float, 3, 3.0), (str, "", ""),
    (float, LARGE, LARGE), (float, -LARGE, -LARGE), (float | None, None, None), (int | None, 4, 4),
    (Any, [None], [None]),
    (Literal["a", "b"], "b", "b"), (list[int], [], []), (list[int], [1, 2], [1, 2]), (tuple[int, ...], [1], (1,)),
    (tuple[int, str], [1, "a"], (1, "a")), (dict[str, int], {"a": 1}, {"a": 1}), (Count, 0, 0), (Positive, 1, 1),
    (Above0, 1e-300, 1e-300), (From0, 0, 0.0), (Bits, 1, 1), (Bits, 16, 16), (Seed, 0, 0), (Seed, WHOLE - 1, WHOLE - 1),
    (Annotated[float, Within(0, 1)], 1, 1.0), (Annotated[str, Among(("x", "y"))], "y", "y"),
    (Annotated[float, Named(halved)], "7", 3.5), (Annotated[float, Within(-1, 1, above=True)], 0, 0.0),
]  # fmt: skip

REFUSED: list[tuple[Any, Any, str]] = [
    (bool, 1, "is 1, and must be true or false"), (int, True, "is True, and must be a whole number"),
    (int, WHOLE, "must be a whole number"), (int, -WHOLE, "must be a whole number"),
    (int, 1.0, "must be a whole number"),
    (float, True, "must be a number up to 1e+100"), (float, 2 * LARGE, "must be a number"),
    (float, float("nan"), "is nan, and must be a number"), (float, "1", "is '1', and must be a number"),
    (float | None, "x", "must be a number"), (str, None, "is None, and must be text"),
    (Literal["a", "b"], "c", "is an unknown name 'c'"), (Literal["a", "b"], 3, "is an unknown name '3'"),
    (list[int], (1,), "must be a list"), (list[int], [1, "a"], "[1] is 'a', and must be a whole number"),
    (tuple[int, str], [1], "must be a list of 2"), (tuple[int, str], [1, "a", 2], "must be a list of 2"),
    (tuple[int, str], "ab", "must be a list of 2"), (tuple[int, str], [1, 2], "[1] is 2, and must be text"),
    (dict[str, int], [], "must be an object"), (dict[str, int], {"a": None}, "['a'] is None"),
    (Count, -1, "is -1, and must be a whole number, 0 or more"), (Positive, 0, "must be a whole number, 1 or more"),
    (Above0, 0, "is 0, and must be a number up to 1e+100, above 0"), (From0, -1e-9, "0 or more"),
    (Bits, 17, "is 17, and must be a whole number, from 1 to 16"), (Bits, 0, "from 1 to 16"),
    (Seed, WHOLE, "whole number"),
    (Annotated[float, Within(0, 1)], 1.1, "from 0 to 1"), (Annotated[float, Within(0, 1)], -0.1, "from 0 to 1"),
    (Annotated[float, Within(-1, 1, above=True)], -1, "above -1"),
    (Annotated[str, Among(("x",))], "z", "unknown name 'z'"),
    (Annotated[float, Named(halved)], "x", "is 'x': 'x' is no number"),
    (Annotated[float, Named(halved)], 7, "must be text"),
]  # fmt: skip


@pytest.mark.parametrize(("hint", "value", "found"), TAKEN)
def test_what_is_taken(hint: Any, value: Any, found: Any) -> None:
    made = read(hint, value, PLACE)
    assert made == found
    assert type(made) is type(found)


@pytest.mark.parametrize(("hint", "value", "said"), REFUSED)
def test_what_is_refused(hint: Any, value: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"^plan 'p.json': .*{re.escape(said)}.*; solve again$"):
        read(hint, value, PLACE)


def test_a_record() -> None:
    made = read(Outer, {"inner": {"bits": 4, "called": "q"}, "half": "3", "eps": 0.1, "rest": {"a": [1]}}, PLACE)
    assert made == Outer(Inner(4, "q"), 1.5, 0.1, {"a": (1,)})
    assert read(Outer, {"inner": {"bits": 4}}, PLACE) == Outer(Inner(4))
    assert keys(Inner) == {"bits": "bits", "name": "called"}
    assert written(Inner(4, "q")) == {"bits": 4, "called": "q"}
    assert read(Inner, Inner(4, "q").to_json(), PLACE) == Inner(4, "q")
    assert read(Inner, {"bits": 4, "double": 8}, PLACE) == Inner(4)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "is [], and must be an object"),
        ({}, "lacks 'inner'; solve"),
        ({"iner": {}}, "lacks 'inner' (it has 'iner'); solve"),
        ({"inner": {"bits": 0}}, "inner.bits is 0, and must be"),
        ({"inner": {"bits": 4, "name": "q"}}, "inner has an unknown key 'name'"),
        ({"inner": {"bits": 4, "double": 9}}, "inner.double is 9, and from the other fields follows 8: leave it out"),
        ({"inner": {"bits": 4}, "more": 1}, "has an unknown key 'more'"),
        ({"inner": {"bits": 4}, "eps": -1}, "eps cannot be: eps -1.0: give a positive number"),
        ({"inner": {"bits": 4}, "rest": {"a": [1, 0.5]}}, "rest['a'][1] is 0.5"),
    ],
)
def test_a_record_that_is_none(value: Any, said: str) -> None:
    with pytest.raises(InputError, match=rf"plan 'p.json': {re.escape(said)}"):
        read(Outer, value, PLACE)


def test_a_rule_that_names_the_file_itself_is_not_wrapped() -> None:
    def refuse(text: str) -> None:
        raise InputError("plan 'p.json' has a format of its own")

    with pytest.raises(InputError, match=r"^plan 'p.json' has a format of its own$"):
        read(Annotated[str, Named(refuse)], "x", PLACE)


def test_long_values_are_shown_short() -> None:
    assert len(shown("x" * 5000)) < 100
    assert len(shown([[[[[[[[0] * 99] * 99]]]]]])) < 200
