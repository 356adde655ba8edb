"""A format is described as compressed-tensors does and read back the same; what natprec has not is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

from natprec.errors import InputError
from natprec.formats import (  # fmt: skip
    FP8_TENSOR,
    GGUF_TYPES,
    Format,
    Integer,
    PerToken,
    Scaling,
    activation,
    engine_names,
    engine_profile,
)
from natprec.formats.compressed_tensors import activation_format, arguments, weight_format
from natprec.formats.engines import GROUP_SIZES
from natprec.formats.presets import FLOAT_ACTIVATIONS, FLOAT_WEIGHTS

PACKED = [name for name in engine_names() if engine_profile(name).container == "compressed-tensors"]


def described(fmt: Format) -> dict[str, Any]:
    """As config.json has it, after the library has read and written it."""
    return QuantizationArgs.model_validate(arguments(fmt)).model_dump(mode="json")


@pytest.mark.parametrize("name", PACKED)
def test_formats_of_every_profile_are_read_back(name: str) -> None:
    profile = engine_profile(name)
    weights = [fmt for role in ("linear", "head", "embedding") for each in profile.formats.get(role, ())
               for fmt in each.at(GROUP_SIZES)]  # fmt: skip
    for fmt in (*weights, *profile.per_channel()):
        assert weight_format(arguments(fmt)) == weight_format(described(fmt)) == fmt
    flowing = [fmt for each in profile.formats.get("cache", ()) for fmt in each.at((64,))]
    for fmt in (*flowing, *(fmt for pairing in profile.pairings for fmt in pairing.inputs.at((64,)))):
        for said in (arguments(fmt), described(fmt)):
            assert activation_format(said, fmt.full_range) == fmt


def test_float_formats_are_read_back() -> None:
    for fmt in FLOAT_WEIGHTS.values():
        assert weight_format(described(fmt)) == fmt
    for fmt in FLOAT_ACTIVATIONS.values():
        assert activation_format(described(fmt)) == fmt


@pytest.mark.parametrize("name", [name for name in PRESET_SCHEMES if PRESET_SCHEMES[name]])
def test_presets_of_the_library_are_understood(name: str) -> None:
    preset = PRESET_SCHEMES[name]
    for key, read in (("weights", weight_format), ("input_activations", activation_format)):
        if key in preset:
            given = preset[key].model_dump(mode="json")
            again = described(read(given))
            assert {k: again.get(k) for k in given if k not in ("observer", "zp_dtype")} == {
                k: v for k, v in given.items() if k not in ("observer", "zp_dtype")
            }


@pytest.mark.parametrize(
    "change",
    [
        {"type": "float", "num_bits": 5}, {"num_bits": 16}, {"strategy": "block"}, {"symmetric": "yes"},
        {"strategy": "group", "group_size": None}, {"scale_dtype": "torch.float64"}, {"num_bits": "4"},
    ],
)  # fmt: skip
def test_what_natprec_has_no_format_for_is_refused(change: dict[str, Any]) -> None:
    known = arguments(activation(8))
    assert activation_format(known) == activation(8)
    for read in (weight_format, activation_format):
        with pytest.raises(InputError, match="natprec has no format for"):
            read(known | {"strategy": "channel", "dynamic": False} | change)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp6"])
def test_older_descriptions_leave_the_dtype_of_scales_out(name: str) -> None:
    said = described(FLOAT_WEIGHTS[name])
    del said["scale_dtype"]
    assert weight_format(said) == FLOAT_WEIGHTS[name]
    if name == "nvfp4":
        assert activation_format(said | {"dynamic": "local"}) == FLOAT_ACTIVATIONS[name]


def test_asymmetric_activations_are_not_taken_for_symmetric_ones() -> None:
    with pytest.raises(InputError, match=r"no format for activations of .*symmetric False"):
        activation_format(arguments(activation(8)) | {"symmetric": False})


@pytest.mark.parametrize("fmt", GGUF_TYPES.values(), ids=lambda fmt: fmt.name)
def test_types_of_gguf_are_refused(fmt: Format) -> None:
    if fmt.name not in ("Q4_0", "Q5_0"):
        with pytest.raises(InputError, match=fmt.name):
            arguments(fmt)


def test_a_float_cache_is_not_taken_for_integers() -> None:
    """The judge read only the number of bits: float8 keys and values were judged as int8 by token."""
    assert activation_format(described(FP8_TENSOR)) == FP8_TENSOR != activation(8)
    assert Format("x", Integer(8), Scaling(PerToken())) != activation(8)
