"""A run on several processes: process 0 alone writes, in folders that all of them see, and all read what it wrote.

For one process alone each of these is what it does anyway.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.measurement.subject import Subject
from natprec.pipeline.request import too_large
from natprec.tasks import Samples
from natprec.utils.atomic_files import new_folder
from natprec.utils.claims import claimed
from natprec.utils.workers import Workers

SEEN_WITHIN = 15.0
"""Seconds in which a file that process 0 made must be there at every host: file systems on a network lag behind."""


def weights_alike(config: QuantizeConfig, workers: Workers) -> QuantizeConfig:
    """On disk in all processes if one of them has too little memory: a model on disk writes no text."""
    if config.weights != "auto" or workers.size == 1:
        return config
    (short,) = workers.all_sum(torch.tensor([too_large(config)], dtype=torch.int64))
    return replace(config, weights="disk" if short else "memory")


def made_by_first(make: Callable[[], Samples], subject: Subject) -> Samples:
    """Samples that process 0 reads or has the model write, at all of those that share the subject's work."""
    workers = subject.segmented.workers
    if workers.size == 1:
        return make()
    content = None
    if workers.first:
        with threads_of_the_host():
            content = make().packed()
    content = workers.from_first(content)
    return Samples.unpacked(content).to(next(subject.model.parameters()).device)


@contextlib.contextmanager
def threads_of_the_host() -> Iterator[None]:
    """Within the block torch has the threads of all processes that a launcher started on this host; they wait.

    What one process writes is then what one process with as many threads writes.
    """
    own, cores = torch.get_num_threads(), os.cpu_count() or 1
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(own, min(own * local, cores)))
    try:
        yield
    finally:
        torch.set_num_threads(own)


@contextlib.contextmanager
def claimed_together(out: Path, workers: Workers) -> Iterator[None]:
    """No other run writes this output within the block; every process sees the folder that it is in.

    Raises:
        OutputError: at process 0: see `natprec.utils.claims.claimed`.
        InputError: at all of them: a process does not see process 0's lock.
    """
    with claimed(out) if workers.first else contextlib.nullcontext():
        refuse_unseen(out.with_name(f".natprec-{out.name}.lock"), workers, out)
        yield
        workers.wait()


@contextlib.contextmanager
def new_folder_together(out: Path, overwrite: bool, workers: Workers) -> Iterator[Path]:
    """The temporary folder that process 0 makes, and that becomes `out`: see `new_folder`; only process 0 writes."""
    with new_folder(out, overwrite) if workers.first else contextlib.nullcontext(out) as made:
        folder = out.parent / workers.from_first(made.name.encode()).decode()
        refuse_unseen(folder, workers, out)
        yield folder
        workers.wait()  # until nobody reads it any more


def refuse_unseen(path: Path, workers: Workers, out: Path) -> None:
    """Refuse an output that other processes write to another disk.

    Raises:
        InputError: names the processes that do not see what process 0 has made.
    """
    if workers.size == 1:
        return
    workers.wait()
    until = time.monotonic() + SEEN_WITHIN
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    missing = torch.zeros(workers.size, dtype=torch.int64)
    missing[workers.rank] = not path.exists()
    (missing,) = workers.all_sum(missing)
    ranks = ", ".join(str(rank) for rank, each in enumerate(missing.tolist()) if each)
    if ranks:
        raise InputError(
            f"process {ranks} does not see the folder of {str(out)!r} in which process 0 writes; give --out on a file "
            "system that all hosts share"
        )
