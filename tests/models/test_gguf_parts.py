"""A GGUF file in parts is the model that it was before it was cut; what is not all of it is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter

from natprec.checkpoints.gguf import FILE_NAME
from natprec.errors import ModelError
from natprec.measurement.subject import Subject
from natprec.models.gguf_parts import check_parts
from natprec.models.loading import load_model, stored_elements
from tests.checkpoints.test_gguf import model_of, planned, written


def cut(file: Path, folder: Path, count: int = 3) -> list[Path]:
    """As `llama-gguf-split` cuts it: all metadata in the first part, the head in the last."""
    reader = GGUFReader(file)
    tensors = sorted(reader.tensors, key=lambda tensor: tensor.name == "output.weight")
    parts = [folder / f"model-{number:05d}-of-{count:05d}.gguf" for number in range(1, count + 1)]
    for number, part in enumerate(parts):
        writer = GGUFWriter(part, "llama")
        if not number:
            for field in reader.fields.values():
                if not field.name.startswith(("GGUF.", "general.architecture")):
                    kind, *inner = field.types
                    writer.add_key_value(field.name, field.contents(), kind, inner[0] if inner else None)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        for tensor in (each for place, each in enumerate(reversed(tensors)) if count - 1 - place % count == number):
            writer.add_tensor(tensor.name, np.asarray(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


@pytest.fixture(scope="module", params=["llama", "llama-untied"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    made = Subject.in_memory(model_of(request.param), tiny_tokenizer, request.param)
    folder = tmp_path_factory.mktemp("whole")
    written(folder, made, planned(made, 6.0))
    return folder / FILE_NAME


def test_parts_are_one(whole: Path, tmp_path: Path) -> None:
    first, *_ = cut(whole, tmp_path)
    expected = load_model(str(whole))
    for on_disk in (False, True):
        loaded = load_model(str(first), on_disk=on_disk)
        assert loaded.source_format == expected.source_format != ""
        assert loaded.source_bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
        assert loaded.leftovers == expected.leftovers
        assert loaded.model.config.tie_word_embeddings is expected.model.config.tie_word_embeddings
        for (name, parameter), (other, wanted) in zip(
            loaded.model.named_parameters(), expected.model.named_parameters(), strict=True
        ):
            assert name == other
            assert torch.equal(loaded.weights.original(name, parameter), wanted), name
    assert stored_elements(str(first)) == stored_elements(str(whole))


def test_the_first_part_is_wanted_and_all_others(whole: Path, tmp_path: Path) -> None:
    first, second, third = cut(whole, tmp_path)
    with pytest.raises(ModelError, match=r"is part 2 of a GGUF file; give the first: .*model-00001-of-00003.gguf"):
        check_parts(second)
    third.rename(tmp_path / "third.gguf")
    with pytest.raises(ModelError, match=r"has 3 parts, and 'model-00003-of-00003.gguf' is missing; put it beside"):
        load_model(str(first))
    with pytest.raises(ModelError, match=r"is one of 3 parts of a GGUF file, and its name does not say which"):
        check_parts(tmp_path / "third.gguf")
    cut(whole, tmp_path, 2)[1].rename(third)
    with pytest.raises(ModelError, match=r"00003-of-00003.gguf' is no part of"):
        check_parts(first)
    third.write_bytes((tmp_path / "third.gguf").read_bytes()[:-64])
    with pytest.raises(ModelError, match=r"00003-of-00003.gguf' .* is cut off"):
        check_parts(first)
