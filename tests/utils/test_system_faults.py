"""What the machine refuses is told with its cause and a remedy, whichever library it refused it to."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from natprec.utils.system_faults import REMEDIES, out_of_memory, system_error, told


@pytest.mark.parametrize("number", sorted(REMEDIES))
@pytest.mark.parametrize("form", ["python", "rust", "torch"])
def test_each_number_in_each_form(number: int, form: str) -> None:
    said = os.strerror(number)
    errors = {
        "python": OSError(number, said, "file"),
        "rust": ValueError(f"Io error: {said} (os error {number})"),
        "torch": RuntimeError(f"unable to open file </m> in read-only mode: {said} ({number})"),
    }
    text = told(errors[form])
    assert text is not None
    assert REMEDIES[number] in text
    assert said in text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        ValueError("Cannot allocate memory (os error 12)"),
    ],
    ids=["python", "system", "gpu", "torch", "rust"],
)  # fmt: skip
def test_no_memory(error: Exception) -> None:
    assert out_of_memory(error)
    text = told(error)
    assert text is not None
    assert text.startswith("not enough memory (")
    assert "--weights disk" in text


@pytest.mark.parametrize("error", [ValueError("a defect (5)"), RuntimeError("size (28) differs"), KeyError("os error")])
def test_a_defect_is_none_of_the_machine(error: Exception) -> None:
    assert system_error(error) is None
    assert told(error) is None


def test_a_file_that_has_gone() -> None:
    for error in (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "m"),
        FileNotFoundError("No such file: m"),
    ):
        text = told(error)
        assert text is not None
        assert "put it back" in text
