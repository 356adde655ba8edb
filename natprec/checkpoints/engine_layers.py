"""A folder's layers as vLLM makes them: what is fused, which scheme of config.json each gets, and its shape.

Only config.json and the headers of the weight files are read, so that any checkpoint in compressed-tensors format can
be told about, whoever made it. Sources: vLLM's `compressed_tensors/utils.py` (`find_matched_target`,
`should_ignore_layer`): names and patterns before the members of a fused set, before names of classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from natprec.engines.architectures import EMBEDDINGS, takes_embedding
from natprec.engines.layers import Layer, Operand
from natprec.errors import InputError
from natprec.models.config_file import FILE, KEY, METHOD, quantization_of, read_config
from natprec.models.headers import Header, read_headers
from natprec.models.model_files import weight_files
from natprec.models.patterns import Targets

FUSED: dict[str, tuple[str, ...]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "qkv": ("query", "key", "value"),
}
"""What vLLM makes one matrix of, by the names of modules in one parent."""

CLASSES = {"linear": "QKVParallelLinear", "head": "ParallelLMHead", "embedding": "VocabParallelEmbedding"}
"""Role → what vLLM's class is called, a part of which a target may be."""

_HEADS = ("lm_head", "embed_out", "output_layer")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "tok_embeddings", "embed_in")
_EXPERT = re.compile(r"(?P<container>.*\bexperts)\.\d+\.")
_CODES = ("I32", "U8", "I8", "F8_E4M3", "F8_E5M2")

Role = Literal["linear", "head", "embedding"]


@dataclass(frozen=True)
class _Scheme:
    weight: Operand
    inputs: Operand | None
    container: str


@dataclass(frozen=True)
class Described:
    """A folder: its layers, and what its config.json calls the model.

    Attributes:
        architecture: the model's class.
    """

    architecture: str
    layers: tuple[Layer, ...]


def describe(folder: Path) -> Described:
    """The layers of a checkpoint in compressed-tensors format.

    Raises:
        InputError: it is none, or its config.json cannot be read.
        ModelError: a weight file cannot be read.
    """
    config = read_config(folder)
    scheme = _scheme(folder, config)
    headers = read_headers(weight_files(folder))
    modules = _matrices(headers)
    schemes = _Schemes(scheme, modules, folder)
    architecture = str([*(config.get("architectures") or []), ""][0])
    text: dict[str, Any] = config.get("text_config") or {}
    dtype = str(config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "bfloat16")
    tied = bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)))
    layers = [
        _layer(name, members, modules, schemes, dtype.removeprefix("torch."), architecture, tied)
        for name, members in _fused(modules).items()
    ]
    return Described(architecture, tuple(layers))


def _scheme(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Its `quantization_config`, with groups whose targets are lists."""
    scheme, file = quantization_of(config), folder / FILE
    if scheme is None:
        raise InputError(f"{str(file)!r} describes no quantized checkpoint: it has no {KEY!r}; give one that does")
    groups = scheme.get("config_groups") or {}
    values = list(groups.values()) if isinstance(groups, dict) else [None]
    known = all(isinstance(each, dict) and isinstance(each.get("targets"), list) for each in values)
    if scheme.get("quant_method") != METHOD or not known:
        raise InputError(
            f"{str(file)!r} says quant_method {scheme.get('quant_method')!r}; natprec reads {METHOD} alone, "
            "with groups whose targets are lists"
        )
    return scheme


def _matrices(headers: Mapping[str, Header]) -> dict[str, dict[str, Header]]:
    """Module → its tensors by their last names, of modules whose weight is a matrix."""
    found: dict[str, dict[str, Header]] = {}
    for name, header in headers.items():
        module, _, leaf = name.rpartition(".")
        found.setdefault(module, {})[leaf] = header
    return {
        module: own
        for module, own in found.items()
        if any(len(own[leaf].shape) == 2 for leaf in ("weight", "weight_packed") if leaf in own)
    }


def _fused(modules: Mapping[str, Any]) -> dict[str, list[str]]:
    """Layer of the engine → the modules that it is made of, in the order of the file's names."""
    made: dict[str, list[str]] = {}
    taken: set[str] = set()
    for module in sorted(modules, key=_in_order):
        if module in taken:
            continue
        expert = _EXPERT.match(module)
        parent, _, leaf = module.rpartition(".")
        prefix = f"{parent}." if parent else ""
        members, name = [module], module
        if expert is not None:
            name = expert["container"]
            members = [other for other in modules if other.startswith(f"{name}.") and _EXPERT.match(other)]
        else:
            for joined, leaves in FUSED.items():
                present = [prefix + each for each in leaves if prefix + each in modules]
                if leaf in leaves and len(present) == len(leaves):
                    members, name = present, prefix + joined
        taken.update(members)
        made[name] = members
    return made


def _in_order(name: str) -> list[tuple[int, str]]:
    """Layer 10 after layer 9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def _role(module: str) -> Role:
    leaf = module.rpartition(".")[2]
    return "head" if leaf in _HEADS else "embedding" if leaf in _EMBEDDINGS else "linear"


class _Schemes:
    """The groups of config.json, matched as vLLM does."""

    def __init__(self, config: Mapping[str, Any], modules: Mapping[str, Any], folder: Path) -> None:
        self._ignore: list[str] = [str(each) for each in config.get("ignore") or []]
        self._by_target: dict[str, _Scheme] = {}
        for group in (config.get("config_groups") or {}).values():
            weights, inputs = group.get("weights"), group.get("input_activations")
            if weights is None:
                continue
            container = str(group.get("format") or config.get("format") or "")
            made = _Scheme(Operand.of(weights, True), Operand.of(inputs, False) if inputs else None, container)
            self._by_target |= {str(target): made for target in group["targets"]}
        self._patterns = Targets([*self._by_target, *self._ignore], modules, str(folder))

    def ignored(self, module: str) -> bool:
        return self._named(module, self._ignore) is not None

    def named(self, module: str) -> _Scheme | None:
        """Whose target is the module's name, or a pattern of it."""
        target = self._named(module, list(self._by_target))
        return None if target is None else self._by_target[target]

    def of_class(self, role: Role) -> _Scheme | None:
        """Whose target is a part of the name of the engine's class."""
        kind = CLASSES[role].lower()
        found = (each for target, each in self._by_target.items() if target.lower() in kind)
        return next(found, None)

    def _named(self, module: str, targets: Sequence[str]) -> str | None:
        return next((each for each in targets if each == module or self._patterns.match(module, [each])), None)


def _layer(
    name: str,
    members: Sequence[str],
    modules: Mapping[str, Mapping[str, Header]],
    schemes: _Schemes,
    dtype: str,
    architecture: str,
    tied: bool,
) -> Layer:
    role = _role(members[0])
    experts = bool(_EXPERT.match(members[0]))
    nameless = role == "embedding" and EMBEDDINGS.get(architecture) == "class"
    found = [None if schemes.ignored(each) else (None if nameless else schemes.named(each)) for each in members]
    if not any(found) and not any(map(schemes.ignored, members)):
        found = [schemes.of_class(role)] * len(members)
    scheme, stored = found[0], [_is_codes(modules[each]) for each in members]
    shapes = [_shape(modules[each], own) for each, own in zip(members, found, strict=True)]
    wrong = _differences(members, found, shapes)
    if not wrong and any(stored) != (scheme is not None):
        wrong = _unlike(members[0], scheme, architecture, nameless)
    if not wrong and scheme is not None and role == "embedding":
        if not takes_embedding(architecture):
            wrong = f"vLLM's {architecture} does not hand its quantization config to the embedding; write it in 16 bits"
        elif tied:
            wrong = "the head is tied to it, and vLLM multiplies no packed embedding; write the head apart"
    return Layer(
        name=name,
        role="experts" if experts else role,
        rows=tuple(rows for rows, _ in shapes),
        columns=shapes[0][1],
        weight=scheme.weight if scheme else None,
        inputs=scheme.inputs if scheme else None,
        container=scheme.container if scheme else "",
        dtype=dtype,
        wrong=wrong,
        members=tuple(members),
    )


def _differences(members: Sequence[str], found: Sequence[_Scheme | None], shapes: Sequence[tuple[int, int]]) -> str:
    """What keeps weights from being one matrix."""
    if _EXPERT.match(members[0]):
        shapes = [(0, 0)]  # those of a layer's experts differ by kind
    for other, scheme in zip(members, found, strict=True):
        if scheme != found[0]:
            one, another = (each.weight.name if each else "not quantized" for each in (found[0], scheme))
            first, second = members[0].rpartition(".")[2], other.rpartition(".")[2]
            return f"vLLM joins {first} ({one}) and {second} ({another}), and would read both as {one}"
    if len({columns for _, columns in shapes}) > 1:
        return f"vLLM joins weights with rows of {' and '.join(str(columns) for _, columns in shapes)}"
    return ""


def _unlike(module: str, scheme: _Scheme | None, architecture: str, nameless: bool) -> str:
    """Why what the file stores is not what vLLM takes it for."""
    if scheme is not None:
        return f"config.json says {scheme.weight.name}, and the file stores a dense weight"
    if nameless:
        return (
            f"vLLM's {architecture} gives its embedding no name, so the target has to be a part of its class's, "
            "'Embedding'; as it is, vLLM takes it for dense"
        )
    return "the file stores codes, and no target of config.json that vLLM matches names it"


def _is_codes(tensors: Mapping[str, Header]) -> bool:
    return "weight_packed" in tensors or tensors["weight"].dtype in _CODES


def _shape(tensors: Mapping[str, Header], scheme: _Scheme | None) -> tuple[int, int]:
    """(rows, columns) of the weight that the tensors stand for."""
    if "weight_packed" not in tensors:
        rows, columns = tensors["weight"].shape
        return rows, columns
    packed, scale = tensors["weight_packed"], tensors.get("weight_scale")
    rows, words = packed.shape
    if packed.dtype == "U8":
        return rows, 2 * words
    if scheme is None:
        return rows, words
    if scheme.weight.group is not None and scale is not None and len(scale.shape) == 2:
        return rows, scale.shape[1] * scheme.weight.group
    return rows, words * 32 // scheme.weight.bits
