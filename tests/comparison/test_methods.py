from __future__ import annotations

import sys

import pytest

from natprec.comparison.methods import DEFAULT, METHODS, parse_interpreters, parse_methods, parse_widths
from natprec.errors import InputError


def test_natprec_comes_last_because_it_needs_a_peers_bytes() -> None:
    assert parse_methods("natprec,gptq, rtn,gptq", METHODS) == ["gptq", "rtn", "natprec"]
    names = parse_methods("all", METHODS)
    assert set(names) == set(METHODS)
    assert all(METHODS[name].own for name in names[names.index("natprec") :])


def test_the_default_methods_are_the_contracts() -> None:
    assert sorted(parse_methods(DEFAULT, METHODS)) == sorted(
        ["rtn", "gptq", "awq", "smoothquant", "autoround", "modelopt", "nf4", "int8", "natprec"]
    )


def test_every_method_has_its_file() -> None:
    assert [name for name, method in METHODS.items() if not method.file.is_file()] == []


@pytest.mark.parametrize("text", ["gtpq", "", ",", "rtn,fp4"])
def test_wrong_methods_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"known: .*gptq"):
        parse_methods(text, METHODS)


def test_widths() -> None:
    assert parse_widths("4, 3,4") == [4, 3]
    for text in ("1", "9", "4.5", "", "4,"):
        with pytest.raises(InputError, match="2 to 8"):
            parse_widths(text)


def test_interpreters() -> None:
    python = sys.executable
    assert parse_interpreters([python, f"gptq={python}"]) == {"": python, "gptq": python}
    with pytest.raises(InputError, match="is no file"):
        parse_interpreters(["gptq=/nowhere/python"])
    with pytest.raises(InputError, match="did you mean 'gptq'"):
        parse_interpreters([f"gptk={python}"])
