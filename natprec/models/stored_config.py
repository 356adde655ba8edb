"""What config.json says of a quantized checkpoint: read and checked once, then asked for each module.

compressed-tensors puts modules into groups by their targets: names, regular expressions, classes. What says more wins,
as in the library's own `match_targets`: a name before an expression, an expression before a class. What is to be
ignored has no group.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from natprec.errors import InputError
from natprec.formats import Format
from natprec.formats.compressed_tensors import activation_format, weight_format
from natprec.models.config_file import FILE, KEY, METHOD, read_config
from natprec.models.patterns import Targets
from natprec.utils.schema import Place, read

SCALE = ".weight_scale"


@dataclass(frozen=True)
class Group:
    """Modules of one format.

    Attributes:
        container: how the library stores them: 'pack-quantized', 'float-quantized', …
        described: the group as config.json has it.
    """

    name: str
    targets: tuple[str, ...]
    container: str
    described: Mapping[str, Any]

    @property
    def format(self) -> Format:
        """Of the weights.

        Raises:
            InputError: natprec has none for them.
        """
        return weight_format(self.described["weights"])

    def inputs(self, full_range: bool = False) -> Format | None:
        """Format of the rounded inputs; None: they stay as they are.

        Args:
            full_range: the rule by which the engine that runs them scales integers.
        Raises:
            InputError: natprec has none for them.
        """
        described = self.described.get("input_activations")
        return activation_format(described, full_range) if described else None


class StoredConfig:
    """The `quantization_config` of a checkpoint.

    Attributes:
        folder: of the checkpoint.
        described: as config.json has it.
        groups: those of its `config_groups` that are of weights.
        ignore: targets that no group has.
        files: tensor → the file that holds it.
    """

    def __init__(self, folder: Path, described: Mapping[str, Any], files: Mapping[str, Path] | None = None) -> None:
        """Check a `quantization_config`.

        Args:
            files: of the tensors in the checkpoint: expressions are matched with all their modules at once.
        Raises:
            InputError: it is of another method, or groups or targets are not what they must be.
            ModelError: an expression is none, or takes too long.
        """
        self.folder, self.described, self.files = folder, described, files or {}
        place = Place(f"{str(folder / 'config.json')!r} describes no checkpoint in {METHOD} format", "quantize again")
        method = described.get("quant_method", METHOD)
        if method != METHOD:
            raise place.within("quant_method").unlike(method, repr(METHOD))
        if "config_groups" not in described:
            raise place.wrong("it has no config_groups")
        groups = read(dict[str, dict[str, Any]], described["config_groups"], place.within("config_groups"))
        self.groups = [
            _group(name, group, described, place.within("config_groups").at(name))
            for name, group in groups.items()
            if group.get("weights") is not None
        ]
        self.ignore: list[str] = read(list[str], described.get("ignore") or [], place.within("ignore"))
        targets = [target for group in self.groups for target in group.targets] + self.ignore
        self._patterns = Targets(targets, (name.rpartition(".")[0] for name in self.files), str(folder))
        scaled = {name.removesuffix(SCALE) for name in self.files if name.endswith(SCALE)}
        self._scaled = scaled if self.files else None

    @property
    def cache(self) -> Mapping[str, Any] | None:
        """How keys and values are kept, where they are rounded."""
        return self.described.get("kv_cache_scheme") or None

    def of(self, *names: str, module: nn.Module | None = None) -> Group | None:
        """The group of a module.

        Args:
            names: in the checkpoint, and in the model where that is another.
            module: for targets that are classes; of a class, only what has scales in the checkpoint has a group.
        """
        classes = {cls.__name__ for cls in type(module).__mro__} if module is not None else set()
        scaled = self._scaled is None or not self._scaled.isdisjoint(names)
        for name in dict.fromkeys(names):
            if self._meant(name, classes, self.ignore):
                continue
            named = (group for group in self.groups if name in group.targets)
            matched = (group for group in self.groups if self._patterns.match(name, group.targets))
            by_class = (group for group in self.groups if scaled and classes.intersection(group.targets))
            if found := next(named, None) or next(matched, None) or next(by_class, None):
                return found
        return None

    def _meant(self, name: str, classes: set[str], targets: Collection[str]) -> bool:
        return name in targets or self._patterns.match(name, targets) or bool(classes.intersection(targets))


def read_description(folder: Path) -> dict[str, Any]:
    """The `quantization_config` of a checkpoint that natprec is to load.

    Raises:
        InputError: its config.json is missing, cannot be read, or has none.
    """
    again = "give the --out folder of quantize"
    described = read_config(folder, again).get(KEY)
    if not isinstance(described, dict):
        raise InputError(f"{str(folder / FILE)!r} describes no quantized checkpoint: it has no {KEY!r}; {again}")
    return described


def _group(name: str, group: dict[str, Any], described: Mapping[str, Any], place: Place) -> Group:
    targets = read(list[str], group.get("targets"), place.within("targets"))
    read(dict[str, Any], group["weights"], place.within("weights"))
    container = read(str, group.get("format") or described.get("format"), place.within("format"))
    return Group(name, tuple(targets), container, group)
