"""A peer that does what it is told: rounds, fails, dies, hangs or gives NaN."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from safetensors.torch import save_file

PACKAGES: dict[str, str] = {}
STEPS = 2
HALF = r"\.scale$"


def quantize(job: Any, model: Any, ids: Any) -> Any:
    what = job.settings["do"]
    print("told to", what, "with", tuple(ids.shape), "process", os.getpid(), flush=True)
    if what == "fail":
        raise ValueError("no such group\nsecond line")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "leave":
        os._exit(7)
    if what == "hang":
        time.sleep(1000)
    for name, parameter in model.named_parameters():
        if "proj" in name:
            parameter.data = (parameter.data * STEPS * 2**job.bits).round() / (STEPS * 2**job.bits)
            if what == "nan":
                parameter.data[0, 0] = torch.nan
    return model


def save(job: Any, done: Any, folder: Any) -> None:
    tensors = {}
    for name, parameter in done.named_parameters():
        if "proj" in name:
            tensors[name] = (parameter.data * STEPS * 2**job.bits).round().nan_to_num().to(torch.int8)
            tensors[name.replace("weight", "scale")] = torch.full((len(parameter), 1), 2.0**-job.bits / STEPS)
        else:
            tensors[name] = parameter.data
    save_file(tensors, folder / "model.safetensors")


def dense(job: Any, done: Any, folder: Any) -> Any:
    return [(name, parameter.data) for name, parameter in done.named_parameters()]
