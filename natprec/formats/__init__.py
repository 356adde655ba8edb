"""Number formats: a codebook and a scaling each; the formats known by name; the engines that run them."""

from natprec.formats.codebook import Codebook, Float, Integer, Table
from natprec.formats.engines import EngineProfile, engine_names, engine_profile
from natprec.formats.format import Format
from natprec.formats.presets import CHANNEL, FP8_TENSOR, GGUF_TYPES, activation, integer, parse_activation, parse_format
from natprec.formats.scaling import (
    Granularity,
    PerBlock,
    PerChannel,
    PerFeature,
    PerGroup,
    PerHead,
    PerScales,
    PerTensor,
    PerToken,
    Scaling,
)

__all__ = [
    "CHANNEL",
    "FP8_TENSOR",
    "GGUF_TYPES",
    "Codebook",
    "EngineProfile",
    "Float",
    "Format",
    "Granularity",
    "Integer",
    "PerBlock",
    "PerChannel",
    "PerFeature",
    "PerGroup",
    "PerHead",
    "PerScales",
    "PerTensor",
    "PerToken",
    "Scaling",
    "Table",
    "activation",
    "engine_names",
    "engine_profile",
    "integer",
    "parse_activation",
    "parse_format",
]
