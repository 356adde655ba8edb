"""A GGUF file that cannot be used is refused by name: file, tensor and type."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

from natprec.errors import ModelError
from natprec.models.gguf_files import check_gguf, read_gguf
from natprec.models.gguf_tensors import is_known
from natprec.models.loading import load_model

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


def test_the_header_says_what_the_package_reads(file: Path) -> None:
    header, theirs = read_gguf(file), GGUFReader(file)
    assert header.architecture == "llama"
    assert is_known(header)
    assert not is_known(replace(header, architecture="falcon"))
    for own, tensor in zip(header.tensors, theirs.tensors, strict=True):
        assert (own.name, own.type, own.offset, own.nbytes, own.elements) == (
            tensor.name, tensor.tensor_type, tensor.data_offset, tensor.n_bytes, tensor.n_elements,
        )  # fmt: skip
        assert own.shape == tuple(reversed(tensor.shape.tolist()))


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
