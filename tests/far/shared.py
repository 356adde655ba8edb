"""Measures a tiny model on the device of `tests.far.device`, alone or as one of the processes that a launcher started.

    python -m tests.far.shared MODEL TEXT OUT [OPTION …]        # natprec measure, further options as it takes them

The device is one whose tensors are sent from device to device, as NCCL sends those of a GPU: what reaches a collective
is on the device, or is refused. Of torch's collectives only the one that natprec uses is there. Prints how often each
was called.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import Any

from tests.far import device

KEEP = device.register()

import torch.distributed as dist  # noqa: E402
from torch import Tensor  # noqa: E402

from natprec import cli  # noqa: E402
from natprec.utils import meeting, workers  # noqa: E402

ABSENT = (
    "all_reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "reduce", "gather",
    "scatter", "all_to_all", "send", "recv", "isend", "irecv", "batch_isend_irecv", "barrier", "monitored_barrier",
    "all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "send_object_list",
)  # fmt: skip

CALLED: Counter[str] = Counter()
_exchange = dist.all_to_all_single


def strict(output: Tensor, input: Tensor, *splits: Any, **named: Any) -> None:
    """NCCL's: tensors of the device, dense."""
    for tensor in (output, input):
        if not isinstance(tensor, device.Far):
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type}")
        if not tensor.is_contiguous():
            raise RuntimeError("Tensors must be contiguous")
    CALLED["all_to_all_single"] += 1
    _exchange(output.raw, input.raw, *splits, **named)  # type: ignore[attr-defined]


def absent(name: str) -> Any:
    """In place of a collective."""

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError(f"torch.distributed.{name} was called")

    return refused


def forbid() -> None:
    """From now on."""
    dist.all_to_all_single = strict
    for name in ABSENT:
        setattr(dist, name, absent(name))


def main(model: str, text: str, out: str, *options: str) -> None:
    """Measure."""
    meeting.BACKENDS[device.NAME] = "gloo"
    forbid()
    given = ["measure", "--model", model, "--data", text, "--device", device.NAME, "--out", out, *options]
    sys.argv = ["natprec", *given]
    try:
        cli.main()
    finally:
        print(json.dumps(CALLED), file=sys.stderr)


if __name__ == "__main__":
    assert workers.dist is dist
    main(*sys.argv[1:])
