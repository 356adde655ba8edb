"""What sets an encoder of text apart from a language model when it is loaded: how its token vectors
become one embedding, and the files that say so.

A folder of sentence-transformers lists its modules in modules.json: the transformer, then the pooling, then maybe
Dense layers and a normalization. The embedding at their end is what its users get.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from natprec.errors import ModelError
from natprec.utils.json_text import from_json

POOLINGS = {"mean": "embedding", "cls": "embedding-cls"}
"""Pooling, as sentence-transformers calls it → the distortion that compares such embeddings."""

ACTIVATIONS = ("Identity", "Tanh", "ReLU", "GELU", "SiLU", "Sigmoid")
"""Of torch.nn, that may follow a Dense layer."""

FILES = (
    "modules.json", "config_sentence_transformers.json",
    *(f"sentence_{family}_config.json" for family in
      ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")),
)  # fmt: skip

WEIGHTS = "model.safetensors"

_REMEDY = "use another model, or remove its modules.json to compare means"


class Unit(nn.Module):
    """Vectors (…, size) divided by their lengths."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Of the same shape."""
        return functional.normalize(vectors, dim=-1)


def embedding_distortion(name: str, where: str) -> str:
    """The distortion for a folder or hub id: by the pooling that sentence-transformers would use, else mean.

    Raises:
        ModelError: it pools in a way that natprec has no distortion for.
    """
    folder = next((path for kind, path in _modules(name, where) if kind == "Pooling"), None)
    if folder is None:
        return POOLINGS["mean"]
    config = _json(where, f"{folder}/config.json") or {}
    modes = {
        key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for key, value in config.items()
        if key.startswith("pooling_mode_") and value is True
    }
    if isinstance(config.get("pooling_mode"), str):  # newer versions of sentence-transformers
        modes = {config["pooling_mode"]}
    if len(modes) != 1 or not modes <= POOLINGS.keys():
        raise ModelError(
            f"model {name!r} pools its token vectors by {', '.join(sorted(modes)) or 'nothing known'}, natprec by "
            f"{' or '.join(POOLINGS)}; {_REMEDY}"
        )
    return POOLINGS[modes.pop()]


def after_pooling(name: str, where: str) -> nn.Module | None:
    """What sentence-transformers does to pooled vectors (batch, size), in float32; None: it makes their length 1.

    Raises:
        ModelError: a module that natprec does not know, or without readable weights.
    """
    modules = [(kind, path) for kind, path in _modules(name, where) if kind not in ("Transformer", "Dropout")]
    kinds = [kind for kind, _ in modules]
    if kinds in ([], ["Pooling", "Normalize"]):
        return None
    if kinds[0] != "Pooling" or kinds.count("Pooling") > 1:
        raise ModelError(f"model {name!r}: modules.json has {', '.join(kinds)} where one Pooling is to come; {_REMEDY}")
    steps = [Unit() if kind == "Normalize" else _dense(name, where, path) for kind, path in modules[1:]]
    return nn.Sequential(*steps).eval().requires_grad_(False)


def _modules(name: str, where: str) -> list[tuple[str, str]]:
    """Kind and folder of the modules in modules.json, in order; none without that file.

    Raises:
        ModelError: one that natprec does not know, or outside of the folder.
    """
    found = []
    for module in _json(where, "modules.json") or []:
        package, _, kind = module["type"].rpartition(".")
        known = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")
        if package.partition(".")[0] != "sentence_transformers" or kind not in known:
            raise ModelError(
                f"model {name!r}: modules.json has a module {module['type']!r}, natprec knows {', '.join(known)} "
                f"of sentence_transformers; {_REMEDY}"
            )
        if not re.fullmatch(r"\w*", module["path"]):  # what is found is written to the same place of another folder
            raise ModelError(f"model {name!r}: modules.json names {module['path']!r}, no plain folder; {_REMEDY}")
        found.append((kind, module["path"]))
    return found


def _dense(name: str, where: str, path: str) -> nn.Module:
    """A Dense module: a Linear layer and its activation."""
    from safetensors.torch import load_file

    config = _json(where, f"{path}/config.json") or {}
    activation = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    last = activation.rpartition(".")[2]
    if not activation.startswith("torch.nn.") or last not in ACTIVATIONS:
        raise ModelError(
            f"model {name!r}: {path} has the activation {activation!r}, natprec knows {', '.join(ACTIVATIONS)} "
            f"of torch.nn; {_REMEDY}"
        )
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise ModelError(f"model {name!r}: {path} reads or writes {config[key]!r}, no embedding; {_REMEDY}")
    file = _file(where, f"{path}/{WEIGHTS}")
    if file is None:
        raise ModelError(
            f"model {name!r}: {path} has no {WEIGHTS}, and pickles are not read; save the model with a newer "
            "sentence-transformers"
        )
    stored = {key: value.float() for key, value in load_file(file).items()}
    weight, bias = stored.get("linear.weight"), stored.get("linear.bias")
    if weight is None or weight.dim() != 2 or (bias is None) == config.get("bias", True):
        raise ModelError(f"model {name!r}: {path}/{WEIGHTS} is not what its config.json says; download it again")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear.load_state_dict({key.removeprefix("linear."): value for key, value in stored.items()})
    return nn.Sequential(linear, getattr(nn, last)())


def companions(name: str, where: str) -> dict[str, bytes]:
    """Files by which sentence-transformers knows how to make embeddings: path in the folder → content.

    Raises:
        ModelError: a module that natprec does not know.
    """
    modules = _modules(name, where)
    names = list(FILES) if modules else []
    for kind, path in modules:
        names += [f"{path}/config.json"] if path else []
        names += [f"{path}/{WEIGHTS}"] if kind == "Dense" else []
    found = {each: _file(where, each) for each in names}
    return {each: file.read_bytes() for each, file in found.items() if file is not None}


def _json(where: str, file: str) -> Any:
    text = stored_text(where, file)
    return None if text is None else from_json(text)


def stored_text(where: str, file: str) -> str | None:
    """The text of a file of a model folder or hub repository; None where there is none."""
    found = _file(where, file)
    return None if found is None else found.read_text(encoding="utf-8")


def _file(where: str, file: str) -> Path | None:
    """A file of a model folder or hub repository; None where there is none, or a folder that is gone."""
    from transformers.utils.hub import cached_file

    if where[:1] in ("/", ".", "~") and not Path(where).is_dir():
        return None
    path = cached_file(
        where, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if path is None else Path(path)
