"""Every public function takes a path as str and as Path: the signatures say so, and the calls do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import natprec
from natprec.data.ordinary import NAME as ORDINARY_TEXT
from natprec.data.seen import source_digest
from natprec.evaluation.verification import Verification
from natprec.formats import integer
from natprec.measurement import Measurement
from natprec.solver import Plan
from natprec.utils.records import OWN_TEXT
from tests.arrange import curve, measurement, subject
from tests.conftest import tiny_model

PLACES = {"path", "folder", "out", "file", "data", "eval_data"}
"""Parameters that name a place, whatever their type."""


def public() -> Iterator[tuple[str, Any]]:
    """The functions of the package and the public methods of its classes."""
    for name in natprec.__all__:
        value = getattr(natprec, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value) and not issubclass(value, Exception):
            yield from (
                (f"{name}.{label}", member)
                for label, member in inspect.getmembers(value, callable)
                if not label.startswith("_")
            )


def meant(function: Any, annotation: Any) -> str:
    """An annotation, in full where it is the name of an alias."""
    return str(function.__globals__.get(annotation, annotation))


def test_signatures_take_both() -> None:
    found = {
        f"{name}({parameter.name})": set(re.findall(r"\w+", meant(function, parameter.annotation)))
        for name, function in public()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name in PLACES or "Path" in str(parameter.annotation)
    }
    assert {"Measurement.save(path)", "Plan.load(path)", "Verification.save(path)", "measure(data)"} <= found.keys()
    assert {"save(out)", "verify(folder)", "load(folder)", "quantize(out)", "Plan.apply(data)"} <= found.keys()
    refused = [name for name, kinds in found.items() if not {"str", "Path"} <= kinds]
    assert not refused


@pytest.mark.parametrize("kind", [str, Path])
def test_records_are_saved_and_loaded(kind: Any, tmp_path: Path) -> None:
    made = measurement([curve("a", np.geomspace(1, 1e-4, 3), [integer(bits, 32) for bits in (2, 4, 8)])])
    made.save(kind(tmp_path / "m"))
    plan = Measurement.load(kind(tmp_path / "m")).solve(eps=0.1, engine="natprec")
    plan.save(kind(tmp_path / "plan.json"))
    assert Plan.load(kind(tmp_path / "plan.json")) == plan
    verification = Verification(
        0.1,
        True,
        0.01,
        (0.0, 0.1),
        0.1,
        0.01,
        None,
        None,
        None,
        64,
        1,
        2,
        4.0,
        4.0,
        "text.txt",
        "0" * 16,
        "rtn",
        verdict="pass",
    )
    verification.save(kind(tmp_path / "verification.json"))
    assert Verification.load(kind(tmp_path / "verification.json")) == verification
    for load in (Measurement.load, Plan.load, Verification.load):
        with pytest.raises(natprec.InputError, match=r"none"):
            load(kind(tmp_path / "none"))


@pytest.mark.parametrize("kind", [str, Path])
def test_the_whole_way(kind: Any, tmp_path: Path, text_file: Path, tiny_tokenizer: Any) -> None:
    """From a text to a checkpoint that is judged and runs."""
    model, text, out = tiny_model(), kind(text_file), kind(tmp_path / "out")
    sizes = {"tokens": 256, "length": 32}
    measured = natprec.measure(model, tiny_tokenizer, text, group_size=32, rounding="rtn", **sizes)
    assert (measured.header.data, measured.header.text_digest) == ("made-up.txt", source_digest(str(text_file)))
    plan = measured.solve(bits=6)
    natprec.save(plan.apply(model, tiny_tokenizer, text, rounding="gptq", **sizes), out)
    assert natprec.verify(out, model, text, **sizes).data == "made-up.txt"
    both = natprec.verify(out, model, **sizes)
    assert {judged.name for judged in both.texts} == {OWN_TEXT, ORDINARY_TEXT}
    assert both.data in (OWN_TEXT, ORDINARY_TEXT)
    assert natprec.load(out)(input_ids=model.dummy_inputs["input_ids"]).logits.shape[-1] == model.config.vocab_size


@pytest.mark.parametrize("kind", [str, Path])
def test_the_whole_job(kind: Any, tmp_path: Path, tiny_folder: Path, text_file: Path) -> None:
    request = natprec.QuantizeConfig(
        kind(tiny_folder), bits=6, data=kind(text_file), eval_data=kind(text_file), tokens=256, eval_tokens=128,
        length=64, group_size=32, rounding="rtn",
    )  # fmt: skip
    _, plan, verification = natprec.quantize(request, kind(tmp_path / "out"))
    assert (plan.model, verification.data) == ("tiny", "made-up.txt")


def test_a_model_in_memory_is_called_by_the_end_of_its_path() -> None:
    made = subject()
    made.model.name_or_path = "/home/someone/models/tiny"
    assert type(made).in_memory(made.model, None).name == "tiny"
