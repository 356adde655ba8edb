"""A GGUF file that cannot be used is refused by name: file, tensor and type."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from natprec.checkpoints.gguf import FILE_NAME
from natprec.errors import ModelError
from natprec.measurement.subject import Subject
from natprec.models.gguf_files import check_gguf
from natprec.models.loading import load_model
from natprec.pipeline.request import for_engine
from tests.checkpoints.test_gguf import model_of, planned, written

NAME = "blk.0.attn_q.weight"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Metadata of every kind, one float and one Q8_0 tensor."""
    made = tmp_path / "made.gguf"
    writer = GGUFWriter(made, "llama")
    writer.add_bool("b", True)
    writer.add_uint8("u8", 1)
    writer.add_int64("i64", -1)
    writer.add_float64("f64", 0.5)
    writer.add_array("strings", ["a", "bc", ""])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_array("floats", [0.5, 1.5])
    writer.add_tensor("norm", np.ones(32, dtype=np.float32))
    writer.add_tensor(NAME, np.zeros((4, 34), dtype=np.uint8), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def with_type(file: Path, kind: int) -> None:
    """The same file with another type at the second tensor."""
    (place,) = GGUFReader(file).get_tensor(1).field.parts[4]  # its present type
    assert place == GGMLQuantizationType.Q8_0
    content = bytearray(file.read_bytes())
    after = content.index(NAME.encode()) + len(NAME) + 4 + 2 * 8
    content[after : after + 4] = kind.to_bytes(4, "little")
    file.write_bytes(content)


def test_a_whole_file_passes(file: Path) -> None:
    check_gguf(file)


@pytest.mark.parametrize(("kind", "label"), [(999, "a newer one, or damage"), (24, "I8"), (15, "Q8_K")])
def test_unknown_types(file: Path, kind: int, label: str) -> None:
    with_type(file, kind)
    with pytest.raises(ModelError) as caught:
        load_model(str(file))
    for part in (NAME, "made.gguf", f"GGUF type {kind} ({label})", "pip install -U gguf"):
        assert part in str(caught.value)


def test_cut_off_anywhere(file: Path) -> None:
    """At no length is a part taken for the whole, and the refusal says which file."""
    whole = file.read_bytes()
    used = len(whole) - (-4 * 34) % 32  # the rest is padding
    for length in [*range(0, used, 7), used - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(ModelError, match=r"made\.gguf.*download it again"):
            check_gguf(file)


def with_tensor(file: Path, name: str, values: np.ndarray) -> None:
    """The same file with one more float32 vector, at the end."""
    content, tensors = file.read_bytes(), check_gguf(file).tensors
    start = min(each.offset for each in tensors)
    at = content.rindex(tensors[-1].name.encode(), 0, start) + len(tensors[-1].name)
    (dimensions,) = struct.unpack("<I", content[at : at + 4])
    end, data = at + 4 + 8 * dimensions + 12, content[start:]
    data += bytes(-len(data) % 32)
    info = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<IQIQ", 1, len(values), 0, len(data))
    header = content[:8] + struct.pack("<Q", len(tensors) + 1) + content[16:end] + info
    file.write_bytes(header + bytes(-len(header) % 32) + data + values.astype("<f4").tobytes())


@pytest.fixture
def llama(tiny_tokenizer: Any, tmp_path: Path) -> Path:
    """A small llama as natprec writes it."""
    made = for_engine(Subject.in_memory(model_of("llama"), tiny_tokenizer, "a llama"), "llama.cpp")
    written(tmp_path, made, planned(made, 6.0))
    return tmp_path / FILE_NAME


def test_tensors_that_transformers_leaves_out_are_named(llama: Path) -> None:
    assert load_model(str(llama)).leftovers.unread == ()
    with_tensor(llama, "rope_freqs.weight", np.ones(8))
    with_tensor(llama, "blk.0.attn_sinks.weight", np.ones(4))
    found = load_model(str(llama)).leftovers
    assert found.unread == ("rope_freqs.weight", "blk.0.attn_sinks.weight")
    (sentence,) = found.sentences(gguf=True)
    assert sentence.startswith("transformers does not read 2 tensors of the GGUF file (rope_freqs.weight, blk.0.attn_")


def test_frequencies_that_would_be_lost_are_refused(llama: Path) -> None:
    """Llama 3.1 and later: the model that transformers makes of such a file computes something else."""
    with_tensor(llama, "rope_freqs.weight", np.array([1, 1, 1, 1, 1, 1, 1, 8.0]))
    with pytest.raises(ModelError, match=r"'rope_freqs.weight' of .* scales the rotary frequencies.*use the original"):
        load_model(str(llama))
