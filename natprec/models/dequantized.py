"""A model that another tool has quantized, as if it were not: each packed weight is a dense tensor of its checkpoint.

Who asks for such a tensor gets numbers in float32, unpacked that moment, so that weights may stay on disk. Only what a
description names (`quantization_config`, `hf_quant_config.json`, MLX's key) is unpacked, and only where all tensors of
a module are known: a scale that nobody applies would make another model. The rest is refused, see `already_quantized`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from natprec.errors import first_line
from natprec.models.already_quantized import description_of
from natprec.models.headers import FLOATS, Header
from natprec.models.packings import READERS, joined, unlike

RUNNING = ("input_scale", "output_scale", "activation_scale", "k_scale", "v_scale")
"""Scales by which an engine rounds what flows through a layer: nothing of the weights."""


@dataclass(frozen=True)
class Dequantized(Header):
    """A dense tensor that is made of packed ones.

    Attributes:
        parts: keys and headers in the files of what it is made of.
        unpack: makes it of them, in this order.
    """

    parts: tuple[tuple[str, Header], ...] = ()
    unpack: Callable[..., Tensor] = field(default=Tensor.float)

    def read(self, key: str, row: int | None = None) -> Tensor:
        """Its values, float32.

        Raises:
            ModelError: its parts do not fit together, or their file has gone.
        """
        alone = row is not None and len(self.shape) > 2  # an expert's parts lie by themselves
        tensors = [header.read(name, row if alone else None) for name, header in self.parts]
        try:
            value = self.unpack(*(tensor.unsqueeze(0) if alone else tensor for tensor in tensors))
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise unlike(key, self.file, first_line(error)) from error
        wanted = (1, *self.shape[1:]) if alone else self.shape
        if value.shape != wanted:
            raise unlike(key, self.file, f"{tuple(value.shape)} in place of {wanted}")
        return value if row is None else value[0 if alone else row]


def dequantized(folder: Path, headers: Mapping[str, Header]) -> tuple[dict[str, Header], str]:
    """The tensors of a folder with dense ones in place of packed ones, and the kind of most of these.

    Args:
        headers: of all tensors by name.
    Returns:
        The same and nothing, where it is not quantized, or in a way that is not unpacked here.
    """
    said = description_of(folder)
    reader = None if said is None else READERS.get(said.method.lower())
    if said is None or reader is None:
        return dict(headers), ""
    modules: dict[str, dict[str, Header]] = {}
    for key, header in headers.items():
        module, leaf = _split(key)
        modules.setdefault(module, {})[leaf] = header
    found, kinds = dict(headers), Counter[str]()
    for module, own in modules.items():
        made = list(reader(own, said.content, module))
        known = {leaf for weight in made for leaf in (*weight.parts, *weight.beside)}
        if not made or own.keys() - known - {"bias", *RUNNING, *(f"{weight.leaf}_bias" for weight in made)}:
            continue  # codes that stay are refused, and so is a scale that is not applied
        for leaf in (*known, *RUNNING):
            found.pop(joined(module, leaf), None)
        for weight in made:
            parts = tuple((joined(module, leaf), own[leaf]) for leaf in weight.parts)
            dense = Dequantized(parts[0][1].file, _float_of(parts), weight.shape, parts, weight.unpack)
            found[joined(module, weight.leaf)] = dense
            kinds[weight.kind] += dense.elements
    if kinds:
        found = {key: header for key, header in found.items() if _split(key)[1] not in RUNNING}
    return found, kinds.most_common(1)[0][0] if kinds else ""


def _split(key: str) -> tuple[str, str]:
    """Module and what of it: bitsandbytes calls parts of a weight `weight.absmax`."""
    module, dot, part = key.partition(".weight.")
    if dot:
        return module, f"weight.{part}"
    module, _, leaf = key.rpartition(".")
    return module, leaf


def _float_of(parts: tuple[tuple[str, Header], ...]) -> str:
    """The type in which the dense tensor would be stored: its scales', where that has 16 bits."""
    found = [header.dtype for _, header in parts if header.dtype in FLOATS]
    return next((each for each in found if each in ("F16", "BF16")), "BF16")
