"""A compressed-tensors folder as codes: what each module's weight is, read one tensor at a time.

The runtime keeps the codes. The judge (`natprec.checkpoints.dense_reader`) does not read them here: it has the engine's
own library reconstruct the weights. Files that natprec wrote carry a CRC-32 of every tensor, so a flipped bit has a
name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from natprec.checkpoints.fixed_scales import stored_input_scale
from natprec.checkpoints.packed_weights import unpacked
from natprec.errors import InputError, ModelError
from natprec.formats import Format, Integer, activation
from natprec.models.checksums import refuse_damaged
from natprec.models.disk_names import DiskNames
from natprec.models.headers import read_headers
from natprec.models.model_files import weight_files
from natprec.models.stored_codes import CODES, in_library_order, refuse_other_format
from natprec.models.stored_config import Group, StoredConfig, read_description
from natprec.quantizers import QuantizedTensor

SCALES = ("weight_scale", "weight_global_scale")


@dataclass(frozen=True)
class Scheme:
    """How a module's product is computed.

    Attributes:
        format: of the weight.
        inputs: of the activations; None: they are floats.
    """

    format: Format
    inputs: Format | None = None


class Checkpoint:
    """A folder whose bits are those that were written; a tensor is read when it is asked for."""

    def __init__(self, folder: Path, files: Sequence[Path] | None = None, ours: bool | None = None) -> None:
        """Read config.json, and the weight files once.

        Args:
            files: with the weights; default: those of a model of transformers.
            ours: whether natprec wrote them; default: if a plan lies beside them.
        Raises:
            InputError: no compressed-tensors checkpoint.
            ModelError: a weight file is missing, truncated or damaged.
        """
        self.folder = folder
        described = read_description(folder)
        states = described.get("kv_cache_scheme")
        if states:
            raise ModelError(
                f"checkpoint {str(folder)!r} keeps keys and values in {states.get('num_bits')} bits, for which there "
                "is no kernel here; run it in vLLM, or take kv_cache_scheme out of config.json to keep them as floats"
            )
        self._in_file: dict[str, str] = {}
        self._module: Callable[[str], str] = str
        files = weight_files(folder) if files is None else files
        refuse_damaged(files, ours=(folder / "plan.json").is_file() if ours is None else ours)
        self._headers = read_headers(files)
        self.files = {name: header.file for name, header in self._headers.items()}
        self._described = StoredConfig(folder, described, self.files)

    def rename(self, names: DiskNames) -> None:
        """Call tensors and modules by the model's names from now on."""
        for key in list(self.files):
            name = names.key_in_model(key)
            if name != key:
                self.files[name], self._in_file[name] = self.files.pop(key), key
                self._headers[name] = self._headers.pop(key)
        self._module = names.module

    def scheme(self, name: str, module: nn.Module) -> Scheme | None:
        """The scheme of a Linear or embedding; None if its weight is not quantized.

        Raises:
            ModelError: a scheme of the checkpoint is none that natprec runs.
        """
        group = self._described.of(self._module(name), name, module=module)
        return None if group is None else self._schemes[group.name]

    @functools.cached_property
    def _schemes(self) -> dict[str, Scheme]:
        return {group.name: _scheme(group, self.folder) for group in self._described.groups}

    def tensor(self, name: str) -> Tensor:
        """One tensor, as it is stored.

        Raises:
            ModelError: it is not there.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self.files:
            raise ModelError(f"checkpoint {str(self.folder)!r} lacks tensor {name!r}; download it again")
        file, key = self.files[name], self._in_file.get(name, name)
        try:
            with safe_open(file, "pt") as opened:
                value: Tensor = opened.get_tensor(key)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"tensor {name!r} of {str(file)!r} cannot be read ({error}); download it again") from error
        return value

    def quantized(self, uses: tuple[str, ...], scheme: Scheme, shape: tuple[int, int]) -> QuantizedTensor:
        """The codes of a weight that one module uses, or several (tied).

        Returns:
            On the grid of `scheme`, scales in float32.
        Raises:
            ModelError: a tensor is missing, damaged, or not of the shape that it must have.
        """
        stored = (use for use in uses if self.files.keys() & {f"{use}.weight_packed", f"{use}.weight"})
        owner = next(stored, uses[0])
        if f"{owner}.weight_g_idx" in self.files:
            raise ModelError(
                f"weight {owner!r} has its groups permuted (weight_g_idx), which no kernel here reads; "
                "quantize again with actorder 'static' or 'weight', or run it in vLLM"
            )
        fmt, (rows, columns) = scheme.format, shape
        leaves = {leaf: self._headers.get(f"{owner}.{leaf}") for leaf in (*CODES, "weight_scale")}
        refuse_other_format(owner, fmt, shape, {leaf: header for leaf, header in leaves.items() if header is not None})
        if not isinstance(fmt.codebook, Integer):
            wanted = [leaf for leaf in (*CODES, *SCALES) if leaf == SCALES[0] or f"{owner}.{leaf}" in self.files]
            tensors = {leaf: self.tensor(f"{owner}.{leaf}") for leaf in wanted}
            return unpacked(fmt, shape, tensors, f"{owner!r} in {str(self.files[owner + '.weight_scale'])!r}")
        codes = self._codes(owner, fmt, shape)
        scale = self.tensor(f"{owner}.weight_scale").float()
        scale = (scale.expand(rows, 1) if scale.numel() == 1 else scale.view(rows, -1)).contiguous()
        zero = None if fmt.symmetric else self._zero_point(owner, fmt, (rows, fmt.groups(columns)))
        if not bool(torch.isfinite(scale).all()):
            raise ModelError(
                f"tensor '{owner}.weight_scale' of {str(self.files[owner + '.weight_scale'])!r}: "
                f"{fmt.name} needs {rows} × {fmt.groups(columns)} finite scales; download it or quantize again"
            )
        return QuantizedTensor(fmt, codes, scale, zero)

    def shared(self, uses: tuple[str, ...], scheme: Scheme) -> tuple[Tensor | None, Tensor | None]:
        """What a weight shares with those that it is multiplied with at once: the outer scale of its codes, and what is
        fixed of its input; each (), None where there is none.

        Raises:
            ModelError: it is not there, or no positive number.
        """
        names = [name for use in uses if (name := f"{use}.{SCALES[1]}") in self.files]
        nested = scheme.format.scaling.outer is not None
        outer = self.tensor(names[0]).float().reshape(()) if nested and names else None
        if scheme.inputs is None:
            return outer, None
        return outer, stored_input_scale(uses[0], scheme.inputs, lambda n: self.tensor(n) if n in self.files else None)

    def _codes(self, owner: str, fmt: Format, shape: tuple[int, int]) -> Tensor:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        if f"{owner}.weight" not in self.files:
            return unpack_from_int32(self.tensor(f"{owner}.weight_packed"), fmt.bits, torch.Size(shape)).contiguous()
        codes = self.tensor(f"{owner}.weight")
        (low, high), (least, most) = fmt.code_range, (int(each) for each in codes.aminmax())
        if least < low or most > high:
            raise ModelError(
                f"config.json says {fmt.name} of {owner!r}, whose codes go from {low} to {high}, and tensor "
                f"'{owner}.weight' of {str(self.files[owner + '.weight'])!r} has codes from {least} to {most}; "
                "put the config.json of these weights back, or quantize again"
            )
        return codes

    def _zero_point(self, owner: str, fmt: Format, shape: tuple[int, int]) -> Tensor:
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        name = f"{owner}.weight_zero_point"
        zero = self.tensor(name)
        if zero.dtype == torch.int32:
            self._expect(name, zero, (-(-shape[0] * fmt.bits // 32), shape[1]), torch.int32)
            return unpack_from_int32(in_library_order(zero), fmt.bits, torch.Size(shape), packed_dim=0).contiguous()
        return zero.view(shape).to(torch.int8)

    def _expect(self, name: str, value: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> None:
        if tuple(value.shape) != shape or value.dtype != dtype:
            raise ModelError(
                f"tensor {name!r} of {str(self.files[name])!r} is {value.dtype} {tuple(value.shape)}, its module needs "
                f"{dtype} {shape}; compressed-tensors before 0.18 packed otherwise: quantize again"
            )


def _scheme(group: Group, folder: Path) -> Scheme:
    """How modules of a group are computed."""
    try:
        fmt, inputs = group.format, group.inputs()
        if isinstance(fmt.codebook, Integer) and fmt.bits < 2:
            raise InputError(f"weights in {fmt.name}; kernels exist for integers of 2 to 8 bits and floats of 4 to 8")
        if inputs is not None and inputs != activation(8) and not inputs.floating:
            raise InputError(f"activations in {inputs.name}; kernels exist for {activation(8).name} and for floats")
    except InputError as error:
        raise ModelError(
            f"scheme {group.name!r} of {str(folder)!r} cannot run here: {error}; it needs a kernel of its own: "
            "run it in vLLM, or quantize the original with natprec"
        ) from error
    return Scheme(fmt, inputs)
