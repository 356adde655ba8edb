"""The tokenizer inside a GGUF file: taken over from the GGUF that a model came from, or told from tokenizer.json.

llama.cpp has its own code for splitting text before BPE and asks for it by name. The name follows from how the
tokenizer splits; one that splits in another way is refused, since it would run and give other tokens.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from natprec.errors import ModelError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""GGUF's types of tokens."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (_WORDS + r"\p{N}{1,3}" + _REST,): "llama-bpe",
    (_WORDS + r"\p{N}" + _REST,): "qwen2",
}
"""What a tokenizer does before BPE → llama.cpp's name for it; ByteLevel alone stands for its own expression."""

KEPT = ("general.", "tokenizer.")
REPLACED = ("general.architecture", "general.file_type", "general.quantization_version")


def copied_fields(source: Path) -> dict[str, tuple[Any, Any, Any]]:
    """Key → value, type and type of items, of what a GGUF says about its origin and tokenizer."""
    from gguf import GGUFReader, GGUFValueType

    fields = {}
    for key, field in GGUFReader(source).fields.items():
        if key.startswith(KEPT) and key not in REPLACED:
            items = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            fields[key] = (field.contents(), field.types[0], items)
    return fields


def add_tokenizer(writer: Any, tokenizer: Any, vocabulary: int) -> None:
    """Describe a tokenizer of transformers.

    Args:
        vocabulary: rows of the embedding, which may be more than there are tokens.
    Raises:
        ModelError: it is not a BPE that llama.cpp has, or has more tokens than the embedding.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    told = json.loads(backend.to_str()) if backend is not None else {}
    if told.get("model", {}).get("type") != "BPE":
        raise ModelError(
            f"tokenizer {type(tokenizer).__name__} is not a BPE, which is all that natprec writes into GGUF; "
            "use another --engine"
        )
    needed = 1 + max([*told["model"]["vocab"].values(), *(added["id"] for added in told["added_tokens"])])
    if needed > vocabulary:
        raise ModelError(
            f"the tokenizer has {needed} tokens and the embedding {vocabulary} rows, which llama.cpp refuses; "
            "use the model's own tokenizer, or another --engine"
        )
    bytewise = told["model"].get("byte_fallback", False)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]]
    tokens = [f"[PAD{index}]" for index in range(vocabulary)]
    types = [UNUSED] * vocabulary
    for token, index in told["model"]["vocab"].items():
        tokens[index] = token
        types[index] = BYTE if bytewise and token.startswith("<0x") else NORMAL
    for added in told["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    writer.add_tokenizer_model("llama" if bytewise else "gpt2")
    writer.add_tokenizer_pre("default" if bytewise else _split_name(told["pre_tokenizer"]))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if bytewise:  # sentencepiece merges by score: the earlier the merge, the higher
        made = {merge.replace(" ", ""): -float(rank) for rank, merge in enumerate(merges)}
        writer.add_token_scores([made.get(token, -float(len(merges))) for token in tokens])
        writer.add_add_space_prefix("Prepend" in json.dumps(told["normalizer"]))
        if tokenizer.unk_token_id is not None:
            types[tokenizer.unk_token_id] = UNKNOWN
    else:
        writer.add_token_merges(merges)
    _add_special(writer, tokenizer)


def _add_special(writer: Any, tokenizer: Any) -> None:
    """Ids of special tokens, whether they are put around text, and the chat template."""
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    put = tokenizer("a").input_ids
    writer.add_add_bos_token(bool(put) and put[0] == tokenizer.bos_token_id)
    writer.add_add_eos_token(bool(put) and put[-1] == tokenizer.eos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _split_name(pre_tokenizer: dict[str, Any] | None) -> str:
    """llama.cpp's name for how text is split before BPE.

    Raises:
        ModelError: it has none that natprec knows.
    """
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer]) if pre_tokenizer else []
    told = []
    for step in steps:
        if step["type"] == "Split":
            told.append(step["pattern"].get("Regex", ""))
        elif step["type"] != "ByteLevel" or step.get("use_regex", True):
            told.append(step["type"])
    name = SPLITS.get(tuple(told))
    if name is None:
        raise ModelError(
            f"the tokenizer splits text in a way that natprec has no GGUF name for ({' '.join(told) or 'none'}); "
            "use another --engine"
        )
    return name
