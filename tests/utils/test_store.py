"""Who can reach the store of a run."""

from __future__ import annotations

import socket
import time
from typing import Any

import pytest

from natprec.utils.store import EACH, REACHING, store_of


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def is_open(host: str, port: int) -> bool:
    with socket.socket() as client:
        client.settimeout(5)
        return client.connect_ex((host, port)) == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.3", "localhost"])
def test_the_store_listens_at_its_address_alone(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """127.0.0.2 is an address of every Linux host: a store on all of them answers there too."""
    port = free_port()
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", address)
    monkeypatch.setenv("MASTER_PORT", str(port))
    store = store_of(0, 1, address, port)
    store.set("key", "value")
    assert store.get("key") == b"value"
    assert is_open("127.0.0.1" if address == "localhost" else address, port)
    assert not is_open("127.0.0.2", port)


def test_a_name_of_several_hosts_listens_as_torch_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that knows its own name as 127.0.1.1 is reached by others at another address."""
    port, looked_up = free_port(), socket.getaddrinfo

    def found(name: str, *rest: Any, **more: Any) -> Any:
        return looked_up("127.0.1.1" if name == "node-0" else name, *rest, **more)

    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr("socket.getaddrinfo", found)
    monkeypatch.setenv("MASTER_ADDR", "node-0")
    monkeypatch.setenv("MASTER_PORT", str(port))
    monkeypatch.setattr("natprec.utils.store.rendezvous", lambda *_, **__: iter([("torch's", 0, 1)]))
    assert store_of(0, 1, "node-0", port) == "torch's"


def test_an_address_of_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service's address is no interface of process 0: torch listens."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr("natprec.utils.store.rendezvous", lambda *_, **__: iter([("torch's", 0, 1)]))
    assert store_of(0, 1, "192.0.2.1", free_port()) == "torch's"


def test_an_address_that_no_host_answers_at_ends_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process 0 may still be to come where a host refuses; a name that nobody knows is an error within a minute."""
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr("natprec.utils.store.rendezvous", lambda *_, **__: iter([("torch's", 1, 2)]))
    assert REACHING + EACH < 60
    monkeypatch.setattr("natprec.utils.store.REACHING", 1.0)
    assert store_of(1, 2, "127.0.0.1", free_port()) == "torch's"
    begun = time.monotonic()
    with pytest.raises(OSError, match=r"[Nn]ame|[Aa]ddress|resol"):
        store_of(1, 2, "no-such-host.invalid", free_port())
    assert time.monotonic() - begun < 30
