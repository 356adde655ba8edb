"""vLLM's rules as natprec holds them: the figures of a run on a GPU, and what its code says of traps."""

from __future__ import annotations

from collections import Counter

import pytest

from natprec.engines import Layer, Operand
from natprec.engines.vllm import run
from natprec.engines.vllm_rules import NEWEST, VLLM
from natprec.formats import parse_activation, parse_format
from natprec.formats.compressed_tensors import arguments
from natprec.formats.engines import GROUP_SIZES, engine_profile
from natprec.formats.gpus import EVERYWHERE
from natprec.formats.offers import OFFERS
from natprec.formats.scaling import PerChannel

CONTAINERS = {
    "fp8": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}


def layer(weight: str, inputs: str | None = None, rows: int = 960, columns: int = 576, role: str = "linear") -> Layer:
    """One that a checkpoint of natprec's has."""
    fmt = parse_format(weight)
    flowing = None if inputs is None else parse_activation(inputs)
    container = next((each for name, each in CONTAINERS.items() if weight.startswith(name)), "pack-quantized")
    if flowing is not None and not flowing.floating and (fmt.bits, flowing.bits) == (8, 8):
        container = "int-quantized"
    return Layer(
        "x",
        role,  # type: ignore[arg-type]
        (rows,),
        columns,
        Operand.of(arguments(fmt), weights=True),
        None if flowing is None else Operand.of(arguments(flowing), weights=False),
        container,
    )


def ran(version: str, capability: int, *of: str | None, **shape: int) -> tuple[str | None, str | None]:
    """Kernel and arithmetic."""
    found = run(layer(*of, **shape), capability, VLLM[version])  # type: ignore[arg-type]
    return found.kernel, found.runs


def test_the_kernels_of_smollm2_on_an_h200() -> None:
    """docs/engines.md: vLLM 0.25.1 gave 4 bits to Machete where rows are a multiple of 128, else to Marlin."""
    shapes = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)}
    kernels = {
        name: {bits: ran("0.25.1", 90, f"int{bits}-g64", rows=rows, columns=columns)[0] for bits in (3, 4, 5, 6, 8)}
        for name, (rows, columns) in shapes.items()
    }
    assert {name: each[4] for name, each in kernels.items()} == {
        "qkv": "Marlin", "o": "Marlin", "gate_up": "Machete", "down": "Marlin",
    }  # fmt: skip
    assert {each[bits] for each in kernels.values() for bits in (3, 5, 6)} == {"Humming"}
    assert ran("0.33.0", 90, "int4-g64") == ("Humming", "int4-g64"), "since 0.32 Humming comes before Marlin on sm90"
    assert ran("0.33.0", 80, "int4-g64") == ("Marlin", "int4-g64")


@pytest.mark.parametrize(
    ("version", "capability", "says", "runs"),
    [
        ("0.33.0", 90, ("mxfp4", None), "mxfp4/fp8-token"),
        ("0.33.0", 100, ("mxfp4", None), "mxfp4/mxfp4"),
        ("0.25.1", 90, ("mxfp4", None), "mxfp4"),
        ("0.33.0", 90, ("nvfp4", "nvfp4"), "nvfp4"),
        ("0.33.0", 120, ("nvfp4", "nvfp4"), "nvfp4/nvfp4"),
        ("0.33.0", 90, ("int4-g64", "a8-token"), "int4-g64"),
        ("0.33.0", 90, ("int3-g64", "a8-token"), "int3-g64"),
        ("0.33.0", 90, ("int3-channel", "a8-token"), "int3-channel/a8-token"),
        ("0.33.0", 90, ("int2-g64", "a4-token"), "int2-g64/a8-token"),
        ("0.33.0", 80, ("int2-g64", "a4-token"), "int2-g64/a4-token"),
        ("0.25.1", 90, ("int3-g64", "a8-token"), None),
        ("0.33.0", 100, ("int8-channel", "a8-token"), None),
        ("0.33.0", 89, ("fp8-block128", "fp8-g128"), "fp8-block128"),
        ("0.25.1", 89, ("fp8-block128", "fp8-g128"), "fp8-block128/fp8-g128"),
        ("0.33.0", 80, ("fp8-channel", "fp8-token"), "fp8-channel"),
        ("0.25.1", 90, ("int3-g64-asym", None), None),
        ("0.33.0", 90, ("int3-g64-asym", None), "int3-g64-asym"),
    ],
)
def test_what_a_file_says_and_what_runs(
    version: str, capability: int, says: tuple[str, str | None], runs: str | None
) -> None:
    found = run(layer(*says, rows=1024, columns=1024), capability, VLLM[version])
    if says == ("int4-g64", "a8-token"):
        assert found.kernel == "Machete"
    assert found.runs == runs
    assert bool(found.note) == (runs != layer(*says).says)


def test_an_embedding_is_read_where_its_codes_fill_words() -> None:
    runs = {bits: run(layer(f"int{bits}-g64", role="embedding"), 90, VLLM[NEWEST]).runs for bits in range(2, 9)}
    assert [bits for bits, each in runs.items() if each] == [2, 4, 8]
    assert run(layer("int4-g64-asym", role="embedding"), 90, VLLM[NEWEST]).runs is None


@pytest.mark.parametrize("capability", EVERYWHERE)
def test_what_is_offered_on_a_gpu_runs_as_it_is_said(capability: int) -> None:
    """The candidates of `--gpu` and the rules of `natprec check` are two lists; here they meet."""
    profile = engine_profile("vllm", f"sm{capability}", untested=True)
    said: list[tuple[str, str | None]] = [(fmt.name, None) for fmt in profile.measured(GROUP_SIZES)]
    for pairing in profile.pairings:
        for weight in (*pairing.weights.at(GROUP_SIZES),):
            said += [(weight.name, inputs.name) for inputs in pairing.inputs.at((1024,))]
    assert len(said) >= 60
    different = {}
    for weight, inputs in said:
        own = layer(weight, inputs, rows=1024, columns=1024)
        found = run(own, capability, VLLM[NEWEST])
        if found.runs != own.says:
            different[own.says] = found
    assert not different


def test_what_is_offered_on_no_gpu_is_not_run_as_it_is_said() -> None:
    """The other direction, for floats, whose pairs are few: natprec leaves out no GPU that runs them."""
    for offer in OFFERS["vllm"]:
        if "linear" not in offer.roles or not offer.weights.at(())[:1]:
            continue
        for weight in offer.weights.at(()):
            for inputs in offer.inputs.at((1024,)) if offer.inputs else [None]:
                own = layer(weight.name, inputs.name if inputs else None, rows=1024, columns=1024)
                runs = {each for each in EVERYWHERE if run(own, each, VLLM[NEWEST]).runs == own.says}
                assert runs == set(EVERYWHERE) & set(offer.gpus), own.says


def test_versions_that_an_offer_needs() -> None:
    for offer in OFFERS["vllm"]:
        if offer.since == "0.25.1" and offer.inputs is None and "linear" in offer.roles:
            for weight in offer.weights.at((64,)):
                assert ran("0.25.1", 80, weight.name, rows=1024, columns=1024)[1] == weight.name, offer.what
        if offer.since == "0.31.0":
            assert all(
                ran("0.25.1", 80, weight.name, rows=1024, columns=1024)[1] is None
                for weight in offer.weights.at((64,))
                if not isinstance(weight.scaling.granularity, PerChannel)
            )


def test_a_plan_of_smollm2_as_it_ran_on_an_h200() -> None:
    """docs/engines.md: 96 of 120 layers have 4 bits, and 26 of these are gate and up."""
    shapes = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)}
    four = {"qkv": 20, "o": 22, "gate_up": 26, "down": 28}
    counts: Counter[str | None] = Counter()
    newer: Counter[str | None] = Counter()
    for name, (rows, columns) in shapes.items():
        for number in range(30):
            bits = 4 if number < four[name] else (2, 3, 5, 6)[number % 4]
            counts[ran("0.25.1", 90, f"int{bits}-g64", rows=rows, columns=columns)[0]] += 1
            newer[ran("0.33.0", 90, f"int{bits}-g64", rows=rows, columns=columns)[0]] += 1
    assert counts == {"Marlin": 70, "Machete": 26, "Humming": 24}
    assert newer == {"Machete": 26, "Humming": 94}, "on sm90 Humming has stood before Marlin since 0.32.0"


@pytest.mark.parametrize(
    ("weight", "inputs", "sm80", "sm90", "sm100", "sm120"),
    [
        ("int4-g64", None, "Marlin int4-g64", "Humming int4-g64", "Marlin int4-g64", "Marlin int4-g64"),
        ("int4-g32", None, "Marlin int4-g32", "Humming int4-g32", "TrtLlmMxint4 int4-g32", "Marlin int4-g32"),
        ("int3-g64", None, "Humming int3-g64", "Humming int3-g64", "Humming int3-g64", "Humming int3-g64"),
        ("int8-channel", None, *["Marlin int8-channel"] * 4),
        ("int8-g64-asym", None, *["Humming int8-g64-asym"] * 4),
        ("int3-channel", None, *[""] * 4),
        ("int4-g64", "a8-token", *[""] * 4),
        ("int8-channel", "a8-token", *["Triton int8-channel/a8-token"] * 4),
        ("nvfp4", "nvfp4", "Marlin nvfp4", "Humming nvfp4", "TrtLlmNvFp4 nvfp4/nvfp4", "FlashInfer nvfp4/nvfp4"),
        ("nvfp4", None, "Marlin nvfp4", "Humming nvfp4", "Marlin nvfp4", "Marlin nvfp4"),
        (
            "fp8-block128", "fp8-g128",
            "Marlin fp8-block128", *["Triton fp8-block128/fp8-g128", "TrtLlmFp8 fp8-block128/fp8-g128"],
            "Triton fp8-block128/fp8-g128",
        ),
        ("fp8-channel", None, *[""] * 4),
        ("mxfp8", "mxfp8", "Marlin mxfp8", "Humming mxfp8", "TrtLlmFp8 mxfp8/mxfp8", "Marlin mxfp8"),
    ],
)  # fmt: skip
def test_experts(weight: str, inputs: str | None, sm80: str, sm90: str, sm100: str, sm120: str) -> None:
    """As vLLM 0.33.0's lists for experts read; an empty word: they cannot run."""
    for capability, expected in ((80, sm80), (90, sm90), (100, sm100), (120, sm120)):
        kernel, runs = ran(NEWEST, capability, weight, inputs, rows=256, columns=128, role="experts")
        found = "" if kernel is None else f"{kernel.replace('WNA16', '').removesuffix('Experts')} {runs}"
        assert found == expected, capability


def test_experts_that_marlin_does_not_take() -> None:
    """Hidden states of 192 features are no whole tiles; by row nothing else takes them."""
    shape = {"rows": 192, "columns": 192, "role": "experts"}
    assert ran(NEWEST, 80, "int4-g64", None, **shape) == ("TritonWNA16Experts", "int4-g64")  # type: ignore[arg-type]
    assert ran(NEWEST, 80, "int4-channel", None, **shape) == (None, None)  # type: ignore[arg-type]


def test_versions_whose_experts_were_not_read_say_so() -> None:
    found = run(layer("int4-g64", role="experts"), 90, VLLM["0.25.1"])
    assert (found.kernel, found.runs) == ("FusedMoE", "int4-g64")
    assert "0.33.0 alone" in found.note
