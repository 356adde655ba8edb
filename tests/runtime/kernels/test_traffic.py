"""Fusing saves 8·M·N bytes, counted here from tensors that an unfused execution really makes."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from natprec.formats import integer
from natprec.runtime.kernels import Epilogue
from natprec.runtime.kernels.traffic import H100, Product, modelled_seconds

EPILOGUES = [Epilogue(), Epilogue("silu", gated=True, output_scale=0.1), Epilogue("gelu", residual=True)]


class Traffic(TorchDispatchMode):
    """Counts the bytes of what each operation reads and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.bytes += sum(value.nbytes for value in (*args, result) if isinstance(value, torch.Tensor))
        return result


@pytest.mark.parametrize("epilogue", EPILOGUES, ids=lambda epilogue: epilogue.name)
@pytest.mark.parametrize("shape", [(1, 64, 128), (512, 96, 64)])
def test_the_accumulator_is_stored_and_loaded_once(epilogue: Epilogue, shape: tuple[int, int, int]) -> None:
    product = Product(*shape, integer(4, 64), epilogue)
    tokens, rows, columns = shape
    assert product.bytes_moved(fused=False) - product.bytes_moved(fused=True) == 8 * tokens * rows
    with Traffic() as product_alone:
        accumulator = torch.mm(torch.zeros(tokens, columns), torch.zeros(columns, rows))
    operands = 4 * (tokens * columns + columns * rows)
    zeros = operands  # made inside the count
    stored = product_alone.bytes - operands - zeros
    with Traffic() as epilogue_alone:
        torch.relu(accumulator)
    loaded = epilogue_alone.bytes - accumulator.nbytes  # less the result, which fusing writes too
    assert stored + loaded == 8 * tokens * rows


def test_what_is_read_is_what_is_stored() -> None:
    """W4A16, 4096 × 4096, one token: 8 MiB of codes, 512 KiB of scales, 8 KiB of inputs, 8 KiB of outputs."""
    product = Product(1, 4096, 4096, integer(4, 64), Epilogue())
    assert product.bytes_moved(fused=True) == (8 << 20) + (512 << 10) + 2 * (8 << 10)


def test_decode_is_bound_by_bytes_and_prefill_by_operations() -> None:
    few, many = (Product(tokens, 4096, 4096, integer(4, 64), Epilogue()) for tokens in (1, 8192))
    assert modelled_seconds(few, H100, True) == few.bytes_moved(True) / H100.bandwidth
    assert modelled_seconds(many, H100, True) == many.operations() / H100.float_operations
    assert modelled_seconds(few, H100, False) >= modelled_seconds(few, H100, True)
