"""A GPU for each process: which one, by what its tensors are sent, and what is refused; no GPU is needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from natprec.errors import InputError
from natprec.utils import meeting
from natprec.utils.meeting import joined


class Beats:
    """In place of a `Pulse`."""

    def __init__(self, *_: Any) -> None:
        self.keys: list[str] = []
        self.store = SimpleNamespace(wait=lambda *_: None)
        self.stopped: list[bool] = []

    def start(self) -> None:
        pass

    def stop(self, well: bool) -> None:
        self.stopped.append(well)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A host with two GPUs and process 1 of two on it; what was asked for."""
    found: dict[str, Any] = {"pulse": Beats()}
    for name, value in (("WORLD_SIZE", 2), ("RANK", 1), ("LOCAL_RANK", 1), ("MASTER_ADDR", "here"), ("MASTER_PORT", 1)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", raising=False)
    monkeypatch.setattr(meeting, "store_of", lambda *_: None)
    monkeypatch.setattr(meeting, "TCPStore", lambda *_, **__: None)
    monkeypatch.setattr(meeting, "Pulse", lambda *_: found["pulse"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.update(device=device))
    monkeypatch.setattr(meeting.dist, "init_process_group", lambda backend, **_: found.update(backend=backend))
    monkeypatch.setattr(meeting.dist, "destroy_process_group", lambda: found.update(closed=True))
    monkeypatch.setattr(meeting.Workers, "all_sum", lambda self, *tensors: list(tensors))
    return found


def test_each_process_has_the_gpu_of_its_number_and_sends_from_it(done: dict[str, Any]) -> None:
    with joined("cuda") as (workers, own):
        assert own == done["device"] == "cuda:1"
        assert done["backend"] == "nccl"
        assert workers._transport == torch.device("cuda:1")
    assert done["closed"]
    assert done["pulse"].stopped == [True]


def test_on_the_cpu_they_send_by_gloo(done: dict[str, Any]) -> None:
    with joined("cpu") as (workers, own):
        assert own == "cpu"
        assert done["backend"] == "gloo"
        assert workers._transport == torch.device("cpu")
    assert "device" not in done


def test_a_dead_process_is_named_by_the_pulse_and_not_by_nccl(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for given, expected in ((None, "0"), ("3", "3")):
        if given is not None:
            monkeypatch.setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", given)
        with joined("cuda"):
            assert meeting.os.environ["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == expected


def test_more_processes_than_gpus_are_refused_and_the_others_hear_of_it(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="process 1 is number 1 on a host with 1; start at most"), joined("cuda"):
        pass
    assert done["pulse"].stopped == [False]


def test_without_a_number_on_its_host_no_gpu_is_its_own(done: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK")
    with pytest.raises(InputError, match="LOCAL_RANK is '' while WORLD_SIZE is 2"), joined("cuda"):
        pass
