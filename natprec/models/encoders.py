"""What sets an encoder of text apart from a language model when it is loaded: how its token vectors
become one embedding, the files that say so, and the pooler that a checkpoint may lack.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from natprec.errors import ModelError

POOLINGS = {"mean": "embedding", "cls": "embedding-cls"}
"""Pooling, as sentence-transformers calls it → the distortion that compares such embeddings."""


def embedding_distortion(name: str, where: str) -> str:
    """The distortion for a folder or hub id: by the pooling that sentence-transformers would use, else mean.

    Raises:
        ModelError: it pools in a way that natprec has no distortion for.
    """
    modules = _json(where, "modules.json") or []
    folder = next((module["path"] for module in modules if module["type"].endswith(".Pooling")), None)
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
            f"{' or '.join(POOLINGS)}; use another model, or remove its modules.json to compare means"
        )
    return POOLINGS[modes.pop()]


def drop_missing_pooler(model: Any, missing: Iterable[str]) -> bool:
    """Take out a pooler whose weights the checkpoint lacks (masked-LM ones do), as embeddings do not use it.

    Returns:
        Whether that accounts for all the missing tensors.
    """
    lacks_only_pooler = all(name.startswith("pooler.") for name in missing) and hasattr(model, "pooler")
    if lacks_only_pooler:
        model.pooler = None
    return lacks_only_pooler


def companions(where: str) -> dict[str, str]:
    """Files by which sentence-transformers knows how to pool: path in the folder → text.

    None if a module has weights of its own (Dense): those are not read, and without them such files mislead.
    """
    modules = _json(where, "modules.json") or []
    if any(module["type"].rpartition(".")[2] not in ("Transformer", "Pooling", "Normalize") for module in modules):
        return {}
    names = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"]
    # plain names only, as what is found is written to the same place of another folder
    names += [f"{module['path']}/config.json" for module in modules if re.fullmatch(r"\w+", module["path"])]
    found = {name: stored_text(where, name) for name in names if modules}
    return {name: text for name, text in found.items() if text is not None}


def _json(where: str, file: str) -> Any:
    text = stored_text(where, file)
    return None if text is None else json.loads(text)


def stored_text(where: str, file: str) -> str | None:
    """A file of a model folder or hub repository; None where there is none."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        where, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    return None if path is None else Path(path).read_text(encoding="utf-8")
