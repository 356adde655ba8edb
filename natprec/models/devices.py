"""What stands around loading: a device that exists, and libraries that keep quiet."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator

import torch

from natprec.errors import InputError, first_line
from natprec.utils.human import human_bytes
from natprec.utils.memory import available_bytes


def usable_device(device: str) -> torch.device:
    """The device, tried with one number.

    Raises:
        InputError: there is no such device.
    """
    try:
        torch.empty(1, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {device!r} cannot be used ({first_line(error)}); use --device cpu") from error


def limit_gpu_memory(device: str, most: float | None) -> None:
    """From now on torch takes no more than so many bytes of a GPU; beyond it, it raises OutOfMemoryError.

    What libraries take for themselves (the CUDA context, some 500 MB) is not counted.

    Args:
        most: None: as many as there are.
    Raises:
        InputError: the device is no GPU, or has less.
    """
    if most is None:
        return
    target = usable_device(device)
    asked = f"gpu-memory {human_bytes(most)}"
    if target.type != "cuda":
        raise InputError(f"{asked}: device {device!r} is no GPU; leave it out, or give --device cuda")
    total = torch.cuda.get_device_properties(target).total_memory
    if most > total:
        raise InputError(f"{asked}: {device!r} has {human_bytes(total)}; give less, or leave it out")
    torch.cuda.set_per_process_memory_fraction(most / total, target)


def free_bytes(device: str, most: float | None) -> float:
    """Bytes of the device's memory, a GPU's or the main one, that weights and all else may take.

    Args:
        most: the limit that was set for a GPU.
    """
    if usable_device(device).type != "cuda":
        return available_bytes()
    free = torch.cuda.mem_get_info(device)[0]
    return free if most is None else min(most, free)


@contextlib.contextmanager
def quiet(stderr: bool = False) -> Iterator[None]:
    """Hold back transformers' bars and warnings and everything on stdout; restore them afterwards.

    Bars of hub downloads stay: they are long, and on stderr. The bar of the GGUF reader has no switch
    of its own; `stderr` discards all that is written there.
    """
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    verbosity, bars, downloads = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if not downloads:
        enable_progress_bars()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            if stderr:
                stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def device_name(device: str) -> str:
    """What computes, as files that are passed on call it: the kind of device, and of a GPU its model."""
    target = torch.device(device)
    return f"cuda: {torch.cuda.get_device_name(target)}" if target.type == "cuda" else target.type
