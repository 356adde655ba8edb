"""GPUs by name, and what a GPU opens."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from natprec.errors import InputError
from natprec.formats import engine_profile
from natprec.formats.engines import GROUP_SIZES
from natprec.formats.gpus import EVERYWHERE, NAMES, capabilities, generation
from natprec.formats.offers import OFFERS, SEEN, offered
from natprec.solver.check_flows import check_flows

DOCUMENT = (Path(__file__).parents[2] / "docs" / "engines.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("H100", "sm90"),
        ("RTX 5090", "sm120"),
        ("sm_90", "sm90"),
        ("NVIDIA L40S", "sm89"),
        ("any", "any"),
        ("b200", "sm100"),
    ],
)
def test_names(name: str, found: str) -> None:
    assert generation(name) == found
    assert generation(found) == found


def test_an_unknown_gpu_says_what_is_near() -> None:
    with pytest.raises(InputError, match="unknown gpu 'h1000'; nearest: h100"):
        generation("h1000")
    with pytest.raises(InputError, match=r"unknown gpu 'mi300x'.*give a generation \(sm75, "):
        generation("mi300x")


def test_a_name_stands_for_one_generation() -> None:
    names = [name for several in NAMES.values() for name in several]
    assert len(set(names)) == len(names)
    assert set(capabilities("any")) == set(EVERYWHERE) <= set(NAMES)


def test_without_a_gpu_nothing_is_opened() -> None:
    """Files of measurements, plans and checkpoints stay as they were: the profile is the same object."""
    assert engine_profile("vllm") is engine_profile("vllm", None)
    with pytest.raises(InputError, match="untested concerns the formats that a GPU opens; give --gpu too"):
        engine_profile("vllm", untested=True)
    with pytest.raises(InputError, match="gpu 'h100': natprec knows what vllm runs by GPU"):
        engine_profile("transformers", "h100")


@pytest.mark.parametrize("gpu", ["any", "sm80", "sm90", "sm100", "sm120"])
def test_what_was_not_seen_to_load_is_asked_for(gpu: str) -> None:
    today = set(engine_profile("vllm").measured(GROUP_SIZES))
    assert set(engine_profile("vllm", gpu).measured(GROUP_SIZES)) == today
    more = set(engine_profile("vllm", gpu, untested=True).measured(GROUP_SIZES))
    assert more > today
    portable = engine_profile("vllm", gpu, untested=True, portable=True)
    assert today <= set(portable.measured(GROUP_SIZES)) < more
    assert all(fmt.symmetric for fmt in portable.measured(GROUP_SIZES))
    assert "embedding" not in portable.formats, "plain transformers reads no packed embedding"


def test_a_gpu_opens_what_runs_there() -> None:
    by = {gpu: engine_profile("vllm", gpu, untested=True) for gpu in ("a100", "h100", "b200")}
    pairs = {
        gpu: {(w.name, i.name) for each in own.pairings for w in each.weights.at((64,)) for i in each.inputs.at((64,))}
        for gpu, own in by.items()
    }
    assert ("fp8-channel", "fp8-token") not in pairs["a100"]
    assert ("fp8-channel", "fp8-token") in pairs["h100"]
    assert ("nvfp4", "nvfp4") not in pairs["h100"]
    assert ("nvfp4", "nvfp4") in pairs["b200"]
    assert ("int8-channel", "a8-token") not in pairs["b200"], "'Int8 not supported on SM100'"


def test_an_offer_is_wholly_a_candidate_of_today_or_not_at_all() -> None:
    """`seen` says 'default' of what is a candidate without --gpu, and of nothing else."""
    today = engine_profile("vllm")
    for offer in OFFERS["vllm"]:
        for role in offer.roles:
            for weight in offer.weights.at((64,)):
                if offer.inputs is None:
                    known = {today.runs(role, weight)}
                else:
                    known = {today.multiplies(weight, inputs) for inputs in offer.inputs.at((64,))}
                assert known == {offer.seen == "default"}, offer.what


def test_the_document_lists_what_was_seen_and_what_was_not() -> None:
    """docs/engines.md and the data are one list."""
    rows = re.search(r"<!-- seen -->\n(.*?)\n<!-- /seen -->", DOCUMENT, re.DOTALL)
    assert rows is not None
    written = [tuple(part.strip() for part in line.strip("|").split("|")) for line in rows[1].split("\n")[2:]]
    assert written == [(each.engine, each.version, each.date, each.gpu, each.what) for each in SEEN]
    rows = re.search(r"<!-- offers -->\n(.*?)\n<!-- /offers -->", DOCUMENT, re.DOTALL)
    assert rows is not None
    lines = [tuple(part.strip() for part in line.strip("|").split("|")) for line in rows[1].split("\n")[2:]]
    expected = [
        (
            offer.what,
            ", ".join(offer.roles),
            _gpus(offer.gpus),
            offer.since,
            "yes" if offer.portable else "no",
            {"default": "a candidate without `--gpu`", "run": "seen", "no": "`--untested`"}[offer.seen],
        )
        for offer in OFFERS["vllm"]
    ]
    assert lines == expected


def _gpus(capabilities: tuple[int, ...]) -> str:
    ordered = sorted(NAMES)
    if list(capabilities) == [each for each in ordered if each >= capabilities[0]]:
        return "all" if capabilities[0] == ordered[0] else f"sm{capabilities[0]} and later"
    return ", ".join(f"sm{each}" for each in capabilities)


def test_portable_and_tested_offers_are_fewer() -> None:
    everything = offered("vllm", "sm90", untested=True, portable=False)
    assert len(offered("vllm", "sm90", untested=False, portable=False)) < len(everything)
    assert len(offered("vllm", "sm90", untested=True, portable=True)) < len(everything)


def test_inputs_that_a_gpu_does_not_round_are_refused_with_the_gpus_that_do() -> None:
    hopper = engine_profile("vllm", "sm90", untested=True)
    with pytest.raises(InputError, match=r"multiplies with 8, 16 bits on sm90.*4 bits on sm75, .*sm100"):
        check_flows(hopper, "4", "16")
    with pytest.raises(InputError, match=r"16 bits on any; give one of them; it multiplies with 8 bits (on|from)"):
        check_flows(engine_profile("vllm", "any", untested=True), "8", "16")
    check_flows(engine_profile("vllm", "b200", untested=True), "4", "16")
