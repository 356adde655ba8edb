"""What a b-bit tensor is: number formats, the bytes they store, the engines that run them."""

from natprec.formats.activation_format import ActivationFormat
from natprec.formats.engines import EngineProfile, engine_names, engine_profile
from natprec.formats.gguf import GGUF_TYPES, GGUFType
from natprec.formats.naming import parse_format
from natprec.formats.number_format import NumberFormat

Format = NumberFormat | ActivationFormat
"""What a site can be in: a weight, or what flows."""

__all__ = [
    "GGUF_TYPES",
    "ActivationFormat",
    "EngineProfile",
    "Format",
    "GGUFType",
    "NumberFormat",
    "engine_names",
    "engine_profile",
    "parse_format",
]
