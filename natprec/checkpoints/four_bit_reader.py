"""A bitsandbytes folder as dense weights in float32, which that library reconstructs one at a time."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from natprec.checkpoints.unpacked import tensor_files
from natprec.models.config_file import FILE, KEY, found_object
from natprec.models.disk_names import DiskNames
from natprec.models.headers import read_stored
from natprec.utils.installed import BITSANDBYTES, require

METHOD = "bitsandbytes"


def is_four_bit(folder: Path) -> bool:
    """Whether a folder's config.json says that bitsandbytes reads its weights, in 4 bits."""
    described = found_object(folder / FILE).get(KEY)
    return (
        isinstance(described, dict) and described.get("quant_method") == METHOD and bool(described.get("load_in_4bit"))
    )


class FourBit:
    """A checkpoint of bitsandbytes.

    Attributes:
        names: of the tensors, in the model.
    """

    def __init__(self, folder: Path, model: nn.Module) -> None:
        """Read the headers.

        Args:
            model: that is to be filled.
        Raises:
            InputError: bitsandbytes is not installed.
        """
        require("bitsandbytes", "a checkpoint of bitsandbytes is read by that library", BITSANDBYTES)
        names = DiskNames(model)
        self._parts: dict[str, dict[str, Path]] = {}
        for key, file in tensor_files(folder).items():
            owner, _, leaf = key.partition(".weight.")
            self._parts.setdefault(f"{owner}.weight" if leaf else key, {})[leaf] = file
        self._keys = {names.key_in_model(key): key for key in self._parts}
        self.names = list(self._keys)

    def tensor(self, name: str) -> Tensor:
        """One dense tensor."""
        key = self._keys[name]
        files = self._parts[key]
        stored = read_stored(files[""], key)
        if len(files) == 1:
            return stored
        from bitsandbytes.functional import QuantState, dequantize_4bit

        stats = {leaf: read_stored(file, f"{key}.{leaf}").clone() for leaf, file in files.items() if leaf}
        state = QuantState.from_dict(stats, device=stored.device)
        state.dtype = torch.float32  # else its values are rounded once more, to the model's 16 bits
        dense: Tensor = dequantize_4bit(stored.clone(), state)
        return dense.view(state.shape)
