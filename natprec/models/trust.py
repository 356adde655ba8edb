"""The one place where transformers is asked for what a checkpoint describes; each time it is told whether code may run.

Where `trust_remote_code` is left out, transformers asks on standard input, which `yes | natprec …` answers. No other
module of natprec calls `from_pretrained` or `from_config` of an Auto class (tests/models/test_trust.py reads them all).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from natprec.errors import ModelError
from natprec.models.bounds import refuse_counts
from natprec.models.encoders import stored_text
from natprec.tasks import Task
from natprec.utils.json_text import from_json

CODE_IN = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
"""Files whose `auto_map` says which code a checkpoint brings with it."""


def config_of(where: str | Path, trust: bool, **arguments: Any) -> Any:
    """The configuration of a folder or hub id.

    Raises:
        ModelError: it has code of its own, which is not trusted, or more layers than any model.
    """
    from transformers import AutoConfig

    if "gguf_file" not in arguments:
        refuse_counts(from_json(stored_text(str(where), "config.json") or "{}"), str(where))
    with _trusted(where):
        return AutoConfig.from_pretrained(where, trust_remote_code=trust, **arguments)


def model_of(where: str | Path, task: Task, trust: bool, **arguments: Any) -> Any:
    """The model with its weights, in float32; errors as of `config_of`."""
    with _trusted(where):
        return task.loader.from_pretrained(where, dtype=torch.float32, trust_remote_code=trust, **arguments)


def unfilled_model(config: Any, task: Task, trust: bool) -> Any:
    """A model of this configuration with its first, random weights, in float32; errors as of `config_of`."""
    with _trusted(config.name_or_path):
        return task.loader.from_config(config, dtype=torch.float32, trust_remote_code=trust)


def tokenizer_of(where: str | Path, trust: bool, config: Any = None) -> Any:
    """The tokenizer; errors as of `config_of`."""
    from transformers import AutoTokenizer

    with _trusted(where):
        return _anywhere(AutoTokenizer.from_pretrained(where, config=config, trust_remote_code=trust))


def _anywhere(tokenizer: Any) -> Any:
    """The tokenizer, without the note whether this process may reach the Hub, which it would write into its files."""
    getattr(tokenizer, "init_kwargs", {}).pop("local_files_only", None)
    return tokenizer


def processor_of(where: str | Path, trust: bool) -> Any:
    """What turns pictures and text into a model's inputs; errors as of `config_of`."""
    from transformers import AutoProcessor

    with _trusted(where):
        processor = AutoProcessor.from_pretrained(where, trust_remote_code=trust)
    _anywhere(getattr(processor, "tokenizer", None))
    return processor


def image_processor_of(where: str | Path, trust: bool) -> Any:
    """What makes images ready for a model; errors as of `config_of`."""
    from transformers import AutoImageProcessor

    with _trusted(where):
        return AutoImageProcessor.from_pretrained(where, trust_remote_code=trust)


def feature_extractor_of(where: str | Path, trust: bool) -> Any:
    """What makes recordings ready for a model; errors as of `config_of`."""
    from transformers import AutoFeatureExtractor

    with _trusted(where):
        return AutoFeatureExtractor.from_pretrained(where, trust_remote_code=trust)


def code_files(where: str | Path) -> dict[str, bytes]:
    """The Python files that a checkpoint's `auto_map` names, and those that these import: name → content.

    Args:
        where: a folder or hub id.
    """
    found: dict[str, bytes] = {}
    wanted = [
        "custom_generate/generate",
        *(name for file in CODE_IN for name in _mapped(stored_text(str(where), file))),
    ]
    while wanted:
        name = f"{wanted.pop()}.py"
        text = None if name in found else stored_text(str(where), name)
        if text is not None:
            found[name] = text.encode()
            folder = name.rpartition("/")[0]
            imports = re.findall(r"^\s*(?:from|import)\s+\.(\w+)", text, re.MULTILINE)
            wanted += [f"{folder}/{module}".removeprefix("/") for module in imports]
    return found


def _mapped(described: str | None) -> list[str]:
    """Modules of `auto_map`, by plain names only, as what is found is written to the same place of another folder."""
    try:
        named = from_json(described or "{}")["auto_map"]
    except (ValueError, KeyError, TypeError):
        return []
    found = list(named.values()) if isinstance(named, dict) else [named]
    classes = [name for entry in found for name in (entry if isinstance(entry, list) else [entry])]
    return [name.partition(".")[0] for name in classes if isinstance(name, str) and re.fullmatch(r"[\w-]+\.\w+", name)]


@contextlib.contextmanager
def _trusted(where: str | Path) -> Iterator[None]:
    """Say in one sentence that code would have to run."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"cannot load model {str(where)!r}: it runs Python code of its own; read that code, then add "
                "--trust-remote-code (from Python: trust_remote_code=True)"
            ) from error
        raise
