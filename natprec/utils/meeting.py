"""How the processes of a run find each other, each with a GPU of its own or on the CPU, and how they part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist

# Imported after a group is opened it makes that the default of its functions, for good: the group's threads would then
# live into the interpreter's end, where they now and then abort the process.
import torch.distributed.nn.functional
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from natprec.errors import InputError, WorkerError
from natprec.utils.heartbeat import Pulse, first_line
from natprec.utils.launcher import launched, number
from natprec.utils.store import JOINING, store_of
from natprec.utils.workers import Workers

BACKENDS = {"cuda": "nccl"}
"""Kind of device → what sends its tensors from device to device, and no others; those of other kinds go through the CPU
and gloo."""

WAITING = timedelta(days=7)
"""How long they wait in an exchange for one that lives: process 0 may write text for hours."""


@contextlib.contextmanager
def joined(device: str) -> Iterator[tuple[Workers, str]]:
    """Yield the processes of this run, and the device that this one computes on; at the end wait for all of them.

    Args:
        device: 'cuda' becomes the GPU of this process's number on its host.
    Raises:
        InputError: a launcher's variable is missing, or one GPU is meant for several processes.
        WorkerError: some process did not come, or has died.
    """
    size = launched()
    if size == 1:
        yield Workers(), device
        return
    rank = number("RANK")
    if device.startswith("cuda:"):
        raise InputError(f"device {device!r} is one GPU, for {size} processes; give --device cuda for one GPU each")
    own = f"cuda:{number('LOCAL_RANK')}" if device == "cuda" else device
    pulse = _meet(rank, size, own)
    workers = Workers(rank, size, torch.device(own if _kind(own) in BACKENDS else "cpu"), pulse)
    well = False
    try:
        yield workers, own
        workers.wait()  # nobody leaves before process 0 has written
        well = True
    finally:
        pulse.stop(well)
        if well:
            dist.destroy_process_group()


def _meet(rank: int, size: int, device: str) -> Pulse:
    """Find the others, begin to watch them, and open the connections."""
    address, port = os.environ.get("MASTER_ADDR"), number("MASTER_PORT")
    try:
        store = store_of(rank, size, str(address), port)
        pulse = Pulse(TCPStore(str(address), port, is_master=False, timeout=JOINING), rank, size)
    except (RuntimeError, ValueError, OSError) as error:
        raise WorkerError(
            f"process {rank} of {size} did not meet the others at {address}:{port} ({first_line(error)}); "
            "start all of them, with a MASTER_ADDR that every host reaches"
        ) from error
    try:
        pulse.store.wait(pulse.keys, JOINING)
    except RuntimeError as error:
        missing = ", ".join(str(other) for other, key in enumerate(pulse.keys) if not pulse.store.check([key]))
        minutes = JOINING.seconds // 60
        raise WorkerError(f"process {missing} of {size} did not come within {minutes} minutes; start all") from error
    pulse.start()
    try:
        if _kind(device) == "cuda":
            _take_gpu(device, rank)
        dist.init_process_group(
            BACKENDS.get(_kind(device), "gloo"), store=store, rank=rank, world_size=size, timeout=WAITING
        )
    except RuntimeError as error:
        raise pulse.verdict(error) from error
    except InputError:
        pulse.stop(well=False)
        raise
    return pulse


def _kind(device: str) -> str:
    """Such as 'cuda' of 'cuda:1'."""
    return device.partition(":")[0]


def _take_gpu(device: str, rank: int) -> None:
    """Make it this process's own.

    Raises:
        InputError: this host has too few.
    """
    count, local = torch.cuda.device_count(), int(device.partition(":")[2])
    if local >= count:
        raise InputError(
            f"device 'cuda' is one GPU for each process, and process {rank} is number {local} on a host with {count}; "
            "start at most as many there as it has GPUs, or use --device cpu"
        )
    # Where another process dies, NCCL's watchdog would end this one with a trace of C++ before `Pulse` names the dead.
    # Without it the GPU waits, nothing that is wrong is saved, and `Pulse` ends the process.
    os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
    torch.cuda.set_device(device)
