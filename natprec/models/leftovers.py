"""What a checkpoint holds besides the weights that its model was given, and that a quantized one must hold too.

Loaders pass over tensors that their class has no place for (the draft layers of multi-token prediction, a head for
another task), make one dtype of all, and do not look at files beside the weights. An engine may need each of them. So
such tensors are carried over as they are, tensors keep the dtype that they had, and files are copied or named.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from natprec.models.already_quantized import DESCRIPTIONS
from natprec.models.experts import pieces_of
from natprec.models.headers import FLOATS, Header, read_headers
from natprec.tasks import Task

HALF = (torch.bfloat16, torch.float16)

DERIVED = re.compile(r"(rotary_emb\.(original_)?inv_freq|(^|\.)position_ids|\.masked_bias)$")
"""Buffers that older checkpoints hold, and that models now make for themselves."""

MASK = re.compile(r"(attn|attention)\.bias$")
"""A causal mask, where it has four dimensions."""

TOKENIZERS = ("tokenizer.model*", "tekken.json", "*.tiktoken")
"""Files of tokenizers that transformers reads and does not write; a GGUF file has its tokenizer within."""

COPIED = (
    *TOKENIZERS, "*processor_config.json", "chat_template.*", "feature_extractor_config.json", "licen[sc]e*", "notice*",
    "copying*", "use_policy*",
)  # fmt: skip
"""Files that a checkpoint keeps, in lower case; what its tokenizer and configuration write is not among them."""

REPLACED = (
    "config.json", "generation_config.json", "tokenizer*.json", "vocab.*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.ot",
    ".*", "*.py", "plan.json", "verification.json", "modules.json", "config_sentence_transformers.json",
    "sentence_*_config.json", *DESCRIPTIONS,
)  # fmt: skip
"""Files that are written anew, or hold the weights in another form; code is the business of whoever trusts it."""


@dataclass(frozen=True)
class Leftovers:
    """Of a checkpoint; nothing, of a model that never was one.

    Attributes:
        tensors: name in the files → where it is; the loader had no place for them.
        files: to be copied; see `files_for`.
        left: names of files that are not, and that nothing else stands for.
        head: of a head whose tie and config differ: 'tied' or 'untied', as it is in the files.
        owner: the model's class, for messages.
        unread: tensors of a GGUF file that transformers does not read.
        adapted: the model that a LoRA adapter was merged into, where one was given.
    """

    tensors: Mapping[str, Header] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    left: tuple[str, ...] = ()
    head: str = ""
    owner: str = ""
    unread: tuple[str, ...] = ()
    adapted: str = ""

    @property
    def nbytes(self) -> int:
        """Of the tensors and of the files that are copied."""
        stored = sum(
            torch.empty(0, dtype=_dtype(each)).element_size() * each.elements for each in self.tensors.values()
        )
        return stored + sum(file.stat().st_size for file in self.files)

    @property
    def modules(self) -> list[str]:
        """Modules whose weights are among the tensors, for engines to leave at 16 bits; of fused experts a pattern."""
        found = set()
        for name, header in self.tensors.items():
            parent, _, leaf = name.rpartition(".")
            if header.dtype in FLOATS and len(header.shape) == 2 and leaf == "weight":
                found.add(parent)
            elif header.dtype in FLOATS and len(header.shape) == 3:
                found.add("re:" + re.escape(parent) + r"\..*")
        return sorted(found)

    def read(self) -> dict[str, Tensor]:
        """The tensors in the types that their headers name; those that nothing packed are mapped from their files."""
        read = {name: header.read(name) for name, header in self.tensors.items()}
        return {name: each.to(FLOATS.get(self.tensors[name].dtype, each.dtype)) for name, each in read.items()}

    def files_for(self, gguf: bool) -> list[Path]:
        """Files to be copied beside a checkpoint of either kind."""
        return [file for file in self.files if not (gguf and _is_one_of(file.name, TOKENIZERS))]

    def sentences(self, gguf: bool = False) -> list[str]:
        """What a user should know before a checkpoint is written."""
        found = []
        if self.head:
            found.append(
                f"config.json says otherwise, but the weights decide: the output head is {self.head}, "
                "and so it is measured and written"
            )
        if self.tensors:
            some = ", ".join([*self.tensors][:3]) + (", …" if len(self.tensors) > 3 else "")
            what = f"{len(self.tensors)} tensors have no place in {self.owner} ({some}): they are not measured, and "
            found.append(what + ("GGUF has no names for them: left out" if gguf else "carried over as they are"))
        if self.unread:
            some = ", ".join(self.unread[:3]) + (", …" if len(self.unread) > 3 else "")
            found.append(
                f"transformers does not read {len(self.unread)} tensors of the GGUF file ({some}): they are neither in "
                "the model that is measured nor in what is written"
            )
        if self.left:
            found.append(f"files of the model that are not copied: {', '.join(self.left)}")
        return found


def find_leftovers(
    folder: Path, files: Iterable[Path], headers: Mapping[str, Header], unused: Iterable[str], model: nn.Module
) -> Leftovers:
    """Of a folder whose weight files were loaded.

    Args:
        files: those weight files; others may hold more tensors.
        unused: names of their tensors that the loader had no place for.
    """
    made = {name for name, _ in model.named_buffers()}
    tensors = {name: headers[name] for name in unused if not _is_made(name, headers[name], made)}
    kept, left = [], []
    loaded = {file.resolve() for file in files}
    for file in sorted(each for each in folder.iterdir() if each.is_file()):
        name = file.name.lower()
        if file.suffix == ".safetensors":
            if file.resolve() in loaded:
                continue
            more = {} if name.startswith("consolidated") else read_headers([file])
            if more and not more.keys() & headers.keys():
                tensors |= more
            else:
                left.append(file.name)  # the same weights in another form
        elif _is_one_of(name, COPIED):
            kept.append(file)
        elif not _is_one_of(name, REPLACED):
            left.append(file.name)
    return Leftovers(tensors, tuple(kept), tuple(left), owner=type(model).__name__)


def stored_dtypes(
    model: nn.Module, known: Mapping[str, torch.dtype]
) -> tuple[torch.dtype | None, dict[str, torch.dtype]]:
    """Which dtype most of a model's numbers are stored in, and the dtype of every float tensor.

    Args:
        known: by the model's names, before its experts were taken apart or after; of tied ones one is enough.
    """
    pieces = pieces_of(model)
    names: dict[int, list[str]] = {}
    sizes: Counter[torch.dtype] = Counter()
    found: dict[str, torch.dtype] = {}
    tensors = model.state_dict(keep_vars=True)
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    for same in names.values():
        wanted = [*same, *(pieces[name].fused for name in same if name in pieces)]
        dtype = next((known[name] for name in wanted if name in known), None)
        if dtype is not None and dtype.is_floating_point:
            found |= dict.fromkeys(same, dtype)
            sizes[dtype] += tensors[same[0]].numel()
    return (sizes.most_common(1)[0][0] if sizes else None), found


def exceptions(
    common: torch.dtype | None, found: Mapping[str, torch.dtype], storage: torch.dtype
) -> dict[str, torch.dtype]:
    """Tensors of a 16-bit checkpoint that are stored in another dtype than the rest, by intent; see `stored_dtypes`.

    One that is stored in float32 as a whole is written in 16 bits, as its quantized weights are in fewer.
    """
    return {name: dtype for name, dtype in found.items() if dtype != storage} if common in HALF else {}


def whole_vectors(
    task: Task, common: torch.dtype | None, found: Mapping[str, torch.dtype], model: nn.Module
) -> dict[str, torch.dtype]:
    """Biases, norms and their statistics of a float32 model of images: they are few, and stay as they are.

    A variance that is rounded to 16 bits moves all that a convolution puts out, which no site is charged for.
    """
    if common in HALF or not task.convolutions:
        return {}
    return {name: found[name] for name, each in model.state_dict().items() if name in found and each.dim() < 2}


def settle_head(model: Any) -> str:
    """Let the config say whether the output head is the embedding; the loader goes by the files.

    Returns:
        'tied' or 'untied' where the config said otherwise, else nothing.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    embedding = None
    with contextlib.suppress(NotImplementedError):  # of a model of images
        embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    text = model.config.get_text_config()
    said = getattr(text, "tie_word_embeddings", None)
    if (
        not isinstance(said, bool)
        or getattr(head, "weight", None) is None
        or getattr(embedding, "weight", None) is None
    ):
        return ""
    tied = head.weight is embedding.weight  # type: ignore[union-attr]
    if tied is said:
        return ""
    for config in (model.config, text):
        config.tie_word_embeddings = tied
    return "tied" if tied else "untied"


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(name.lower(), pattern) for pattern in patterns)


def _is_made(name: str, header: Header, buffers: set[str]) -> bool:
    """Whether the model makes this tensor for itself."""
    return name in buffers or bool(DERIVED.search(name)) or (len(header.shape) == 4 and bool(MASK.search(name)))


def _dtype(header: Header) -> torch.dtype:
    """Of another type than a weight's: as many bytes are enough."""
    others = {
        "I64": torch.int64,
        "U64": torch.int64,
        "I32": torch.int32,
        "U32": torch.int32,
        "I16": torch.int16,
        "U16": torch.int16,
    }
    return FLOATS.get(header.dtype) or others.get(header.dtype, torch.uint8)
