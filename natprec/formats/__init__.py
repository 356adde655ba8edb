"""What a b-bit tensor is: number formats, the bytes they store, the engines that run them."""

from natprec.formats.engines import EngineProfile, engine_names, engine_profile
from natprec.formats.number_format import NumberFormat, parse_format

__all__ = ["EngineProfile", "NumberFormat", "engine_names", "engine_profile", "parse_format"]
