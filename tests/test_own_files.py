"""natprec's own files: whatever is done to one, it gives a value that makes sense or an error that names the field."""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from natprec.benchmark.result import Evaluation, TaskResult
from natprec.errors import InputError, NatprecError
from natprec.evaluation.verification import Verification
from natprec.evaluation.verify import recorded
from natprec.formats import activation, integer
from natprec.measurement import Curve, Measurement
from natprec.models.weight_sites import Site
from natprec.solver import Plan
from natprec.utils import own_files
from natprec.utils.own_files import CHECKSUM, LARGEST, digest_of, what_is
from tests.arrange import curve, measurement

WIDTHS = (2, 4, 8)
NAN, DEEP = float("nan"), json.loads("[" * 500 + "]" * 500)
INSTEAD: tuple[Any, ...] = (
    None, True, -1, 0, 0.5, 3, 2**80, 1e300, -1e300, NAN, float("inf"), "", "wrong", "int3-channel", [], {}, [1], DEEP,
)  # fmt: skip
SPELLED = re.compile(r"'[^']+'.*\S")


def flowing(name: str, kind: Any, role: Any, shape: tuple[int, int], fused_group: str, sizes: int | None) -> Curve:
    formats = [activation(bits, sizes) if sizes else activation(bits) for bits in (4, 8)]
    made = curve(name, [1e-3, 1e-5], formats, shape=shape, fused_group=fused_group)
    site = Site(name, kind, role, shape, (name,), fused_group, 0)
    return replace(made, site=site, largest=(3.0, 3.5))


def measured() -> Measurement:
    """Two weights of one fused group, their input, an embedding, keys and values."""
    formats = [integer(bits, 64) for bits in WIDTHS]
    return measurement(
        [
            curve("b.q", [1e-1, 1e-3, 1e-6], formats, fused_group="b.q"),
            curve("b.k", [2e-1, 2e-3, 2e-6], formats, fused_group="b.q"),
            flowing("b.q:input", "activation", "linear", (1, 128), "b.q", None),
            curve("embed", [1e-1, 1e-3, 1e-6], formats, role="embedding", fused_group="embed"),
            flowing("b:key", "key", "cache", (2, 16), "b:key", 16),
            flowing("b:value", "value", "cache", (2, 16), "b:value", 16),
        ],
        engine="natprec",
        sites="all",
        checks=[("b.q", "int4-g64", 0.25, 0.3)],
        seconds={"measure": 1.5},
    )


def planned() -> Plan:
    return measured().solve(eps=0.05, activations="8", kv="8")


def verified() -> Verification:
    return Verification(
        eps=0.01, passed=True, kl_mean=0.009, kl_ci95=(0.008, 0.01), kl_p99=0.1, kl_predicted=0.0095,
        perplexity_reference=10.0, perplexity_quantized=10.1, top1_agreement=0.98, tokens=64, stored_bytes=10,
        stored_bytes_reference=40, bits_per_weight=4.1, bits_per_weight_total=5.0, data="a.txt", data_digest="0" * 16,
        rounding="gptq", corrections=1, verdict="pass",
    )  # fmt: skip


def asked() -> Evaluation:
    """Right and wrong answers, and a task whose scores are neither."""
    task = TaskResult(
        name="piqa", n=200, metric="acc", base=0.68, quantized=0.665, difference=-0.015, ci95=(-0.04, 0.01),
        p_mcnemar=0.549, flips_to_wrong=7, flips_to_right=4, answers_changed=13, detectable=0.0325, kl_answers=0.02,
        documents_digest="0" * 16,
    )  # fmt: skip
    other = replace(task, name="f1", metric="f1", p_mcnemar=None, flips_to_wrong=None, flips_to_right=None)
    return Evaluation("tiny", "1" * 16, "out", "natprec", 200, 0, "0.4.13", [task, other], {"model.safetensors": "2"})


MADE: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    "evaluation": (asked, Evaluation.load),
    "plan": (planned, Plan.load),
    "verification": (verified, Verification.load),
    "measurement": (measured, Measurement.load),
}


def content_of(file: Path) -> dict[str, Any]:
    """What a file says, a measurement in its header."""
    if file.name != "measurement":
        return dict(json.loads(file.read_text()))
    with safe_open(file, "np") as opened:
        return dict(json.loads(opened.metadata()["natprec"]))


def write(file: Path, content: Any, arrays: dict[str, np.ndarray] | None = None) -> None:
    if file.name == "measurement":
        save_file(load_file(file) if arrays is None else arrays, file, {"natprec": json.dumps(content)})
    else:
        file.write_text(json.dumps(content))


@pytest.fixture(params=MADE)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """One of each kind."""
    made, _ = MADE[request.param]
    made().save(tmp_path / request.param)
    return tmp_path / request.param


def load(file: Path) -> Any:
    """What is in a file, or why nothing is."""
    try:
        return MADE[file.name][1](file)
    except NatprecError as error:
        return error


def mutations(value: Any) -> Iterator[tuple[str, Any]]:
    """The value with one thing in it, at any depth, taken out or replaced; and where."""

    def places(part: Any, way: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        for key in part if isinstance(part, dict) else range(len(part)) if isinstance(part, list) else ():
            yield (*way, key)
            yield from places(part[key], (*way, key))

    for *way, last in places(value, ()):
        for instead in (*INSTEAD, "take it out", "call it otherwise"):
            changed = copy.deepcopy(value)
            part = changed
            for key in way:
                part = part[key]
            if instead == "take it out":
                del part[last]
            elif instead == "call it otherwise":
                if isinstance(part, list):
                    continue
                part[f"{last}s"] = part.pop(last)
            else:
                part[last] = instead
            yield f"{way} {last}: {str(instead)[:20]}", changed


def makes_sense(value: Any, folder: Path) -> bool:
    """Whether what was read can be used: solved for, saved, and read again."""
    if isinstance(value, Measurement):
        try:
            value = value.solve(eps=0.05, activations="8", kv="8")
        except NatprecError as error:
            return bool(str(error))
    if isinstance(value, Plan) and not all(0 <= each.kl < math.inf for each in value.sites.values()):
        return False
    value.save(folder / "again")
    return bool(type(value).load(folder / "again") == value)


def test_a_file_of_which_anything_is_changed(file: Path) -> None:
    content = content_of(file)
    del content[CHECKSUM]
    used = 0
    for where, changed in mutations(content):
        write(file, changed)
        value = load(file)
        if isinstance(value, NatprecError):
            assert SPELLED.search(str(value)), where
        else:
            used += 1
            assert makes_sense(value, file.parent), where
    assert used > 20, "names and figures that nothing contradicts may be others"


def test_a_measurement_of_which_an_array_is_changed(tmp_path: Path) -> None:
    file = tmp_path / "measurement"
    measured().save(file)
    content, arrays = content_of(file), load_file(file)
    del content[CHECKSUM]
    for name, array in arrays.items():
        spoiled = {
            "nan": np.where(array == array, NAN, array), "huge": array * 0 + 1e300, "negative": array * 0.0 - 1,
            "int": array.astype(np.int32), "short": array[:-1], "flat": array.reshape(-1, 1), "none": array[:0],
        }  # fmt: skip
        if name == "pieces":
            del spoiled["none"], spoiled["short"]
            spoiled["twice"] = np.ones(2, np.uint64)
        for what, instead in spoiled.items():
            if instead.shape == array.shape and instead.dtype == array.dtype and not array.size:
                continue
            write(file, content, {**arrays, name: np.ascontiguousarray(instead)})
            assert re.search(r"measurement '.*'.*; measure again", str(load(file))), f"{name} {what}"
        write(file, content, {key: value for key, value in arrays.items() if key != name})
        if name != "pieces":
            with pytest.raises(InputError, match="has no array"):
                Measurement.load(file)
    write(file, content, {**arrays, "other": np.zeros(1)})
    with pytest.raises(InputError, match="an array 'other' that belongs to no site"):
        Measurement.load(file)


def test_flipped_bits_and_cuts(file: Path) -> None:
    """With its checksum every change of a file is seen, or changes nothing that it says."""
    written, content, draw = load(file), file.read_bytes(), random.Random(0)
    for _ in range(400):
        changed = bytearray(content)
        place = draw.randrange(len(changed))
        changed[place] ^= 1 << draw.randrange(8)
        cut = bytes(changed) if draw.random() < 0.7 else content[:place]
        file.write_bytes(cut)
        found = load(file)
        if isinstance(found, NatprecError):
            assert SPELLED.search(str(found))
        elif isinstance(found, Measurement):
            assert asdict(found.header) == asdict(written.header)
            assert found.solve(eps=0.05) == written.solve(eps=0.05)
        else:
            assert found == written


@pytest.mark.parametrize(("name", "wanted"), list(itertools.permutations(MADE, 2)))
def test_a_file_of_another_kind_says_what_it_is(name: str, wanted: str, tmp_path: Path) -> None:
    MADE[name][0]().save(tmp_path / name)
    with pytest.raises(InputError, match=rf"'.*/{name}' is an? {name}, and an? {wanted} is wanted; .*natprec"):
        MADE[wanted][1](tmp_path / name)


@pytest.mark.parametrize("wanted", MADE)
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b'{"model_type": "llama"}', "is the config.json of a model"),
        (b'{"model_type": "llama", "quantization_config": {}}', "is the config.json of a quantized checkpoint"),
        (b"GGUF" + bytes(20), "is a GGUF file"),
        (b"[" * 100_000, r"cut off|nested too deep"),
        (b'{"sites": 1, "kl_mean": 1, "kl_mean": 2, "sites": 2}', r"cut off|key '\w+' twice"),
        (b'{"kl_mean": NaN, "sites": NaN}', r"cut off|NaN is no number"),
        (b'{"kl_mean": 1' + b"0" * 5000 + b"}", r"cut off|cannot be read"),
        (b"\xff\xfe\xfa", r"cut off|cannot be read"),
        (b"", r"cut off|cannot be read"),
        (b"7", r"cut off|is no"),
    ],
)
def test_files_that_are_none_of_ours(wanted: str, content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=what):
        MADE[wanted][1](tmp_path / "file")


def test_folders_and_recipes_are_no_files_of_ours(tmp_path: Path) -> None:
    planned().save(tmp_path / "plan.json")
    (tmp_path / "a.toml").write_text("eps = 0.05")
    with pytest.raises(InputError, match=r"is a checkpoint folder, and a plan is wanted; give '.*/plan.json'"):
        Plan.load(tmp_path)
    with pytest.raises(InputError, match=r"is a checkpoint folder, and a measurement is wanted; write it with"):
        Measurement.load(tmp_path)
    with pytest.raises(InputError, match="is a recipe, and a plan is wanted"):
        Plan.load(tmp_path / "a.toml")


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "plan.json").open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(InputError, match=f"larger than {LARGEST} bytes"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("version", [-1, 3, 5, 8, 99, "1", None, True, 1.0])
def test_other_versions_are_refused_by_name(file: Path, version: Any) -> None:
    write(file, content_of(file) | {"version": version})
    said = rf"has version '?{version}'?; this natprec reads [\d, ]*\d and \d: .*that wrote it"
    assert re.search(said, str(load(file)))


def test_a_file_without_checksum_is_read_and_one_that_was_changed_is_not(file: Path) -> None:
    content = content_of(file)
    name = {"plan": "model", "verification": "data", "measurement": "data", "evaluation": "model"}[file.name]
    write(file, content | {name: "another"})
    assert re.search(r"is not what was written: .* take 'checksum' out of it, else", str(load(file)))
    del content[CHECKSUM]
    write(file, content | {name: "another"})
    found = load(file)
    assert getattr(getattr(found, "header", found), name) == "another"


def test_the_checksum_is_of_what_is_said_not_of_its_spelling(tmp_path: Path) -> None:
    plan = planned()
    plan.save(tmp_path / "plan.json")
    content = json.loads((tmp_path / "plan.json").read_text())
    assert list(content)[:2] == ["version", CHECKSUM]
    (tmp_path / "plan.json").write_text(json.dumps(dict(reversed(content.items())), indent=7), encoding="utf-8-sig")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_an_older_measurement_of_weights_is_read_and_of_activations_is_not(tmp_path: Path) -> None:
    """Version 7 changed the scales of activations, and nothing of weights."""
    file = tmp_path / "measurement"
    made = measured()
    made.save(file)
    content = content_of(file) | {"version": 6}
    del content[CHECKSUM], content["text_digest"]
    arrays = load_file(file)
    del arrays["pieces"]
    write(file, content, arrays)
    with pytest.raises(InputError, match=r"version 6, in which activations had other scales; this natprec reads 7"):
        Measurement.load(file)
    content["sites"] = [site for site in content["sites"] if site["kind"] == "weight"]
    names = {site["name"] for site in content["sites"]}
    write(file, content, {key: each for key, each in arrays.items() if key.partition("|")[0] in names})
    found = Measurement.load(file)
    assert found.header == replace(made.header, version=6, sites="weights")
    assert found.solve(eps=0.05) == made.solve(eps=0.05)


def test_a_measurement_of_all_sites_says_so_again(tmp_path: Path) -> None:
    measured().save(tmp_path / "m")
    assert Measurement.load(tmp_path / "m").header == measured().header


def test_a_measurement_of_other_weights_is_refused_before_it_is_used() -> None:
    made = measured()
    sites = [each.site for each in made.weights.values()]
    made.refuse_other_sites(sites, "m")
    for others, said in (
        (sites[1:], "has what is none of the model's weights: 'b.q'"),
        ([*sites, replace(sites[0], name="more")], "lacks of the model's weights: 'more'"),
        ([*sites[:2], replace(sites[2], shape=(1, 2))], "has another of the model's weights: 'embed'"),
    ):
        with pytest.raises(InputError, match=f"measurement 'm': {said}; measure again"):
            made.refuse_other_sites(others, "m")


def test_a_verification_that_cannot_be_read_does_not_stop_the_next(tmp_path: Path) -> None:
    assert recorded(tmp_path) is None
    verified().save(tmp_path / "verification.json")
    assert recorded(tmp_path).rounding == "gptq"
    (tmp_path / "verification.json").write_text((tmp_path / "verification.json").read_text().replace("gptq", "rtn"))
    assert recorded(tmp_path) is None


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"plan '.*nowhere.json' does not exist; write it with natprec solve"):
        Plan.load(tmp_path / "nowhere.json")


def test_a_checksum_is_the_same_in_every_version() -> None:
    """Files of earlier versions are read by later ones, which must not take them for changed."""
    assert digest_of({"b": 1, "a": [0.5, None]}) == digest_of({"a": [0.5, None], "b": 1}) == "fa4bdf52c65e42b1"


def test_a_header_is_looked_at_up_to_the_largest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "m"
    measured().save(file)
    size = int.from_bytes(file.read_bytes()[:8], "little")
    for most, said in ((size, "a measurement"), (size - 1, None)):
        monkeypatch.setattr(own_files, "LARGEST", most)
        assert what_is(file) == said
