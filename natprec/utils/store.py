"""The store through which the processes of a run find each other.

torch's store asks nobody who they are, and listens on all of a host's addresses. Process 0 opens it on MASTER_ADDR
alone, where that is an address of its host. A launcher that keeps the store itself (torchrun does) listens as it likes.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import time
from datetime import timedelta

from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

JOINING = timedelta(minutes=5)
"""How long processes wait for each other at the start."""

REACHING, EACH = 40.0, 5.0
"""Seconds for which an address is tried that no host answers at, and for one try."""


def store_of(rank: int, size: int, address: str, port: int) -> Store:
    """The run's store, which process 0 opens where no launcher has.

    Raises:
        RuntimeError, ValueError, OSError: it cannot be opened, or reached, or the others did not come.
    """
    launchers = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    listening = None if rank or launchers else _listening(address, port)
    if listening is None:
        if rank:
            _reach(address, port)
        found, _, _ = next(rendezvous("env://", rank, size, timeout=JOINING))
        return found
    return TCPStore(
        address, port, size, is_master=True, timeout=JOINING, master_listen_fd=listening.detach()
    )  # the store closes it


def _reach(address: str, port: int) -> None:
    """Try an address until a host answers, if only that nothing listens there yet: then process 0 is still to come.

    Raises:
        OSError: no host does; says why.
    """
    begun = time.monotonic()
    while True:
        try:
            socket.create_connection((address, port), EACH).close()
            return
        except ConnectionRefusedError:
            return
        except OSError:
            if time.monotonic() - begun > REACHING:
                raise
        time.sleep(1)


def _listening(address: str, port: int) -> socket.socket | None:
    """A socket on one address. None where others reach this host by that name at another one, or it has several.

    A name that the host itself knows as 127.0.1.1 (Debian), or that is a load balancer's, says nothing of an interface.
    """
    with contextlib.suppress(OSError):
        found = {(entry[0], entry[4][0]) for entry in socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)}
        loops = all(ipaddress.ip_address(str(host).partition("%")[0]).is_loopback for _, host in found)
        if loops and not _means_here(address):
            return None
        family, host = min(found)  # IPv4 before IPv6; clients of the store try both
        if [kind for kind, _ in found].count(family) > 1:
            return None
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind((host, port))
            listening.listen(1024)
        except OSError:
            listening.close()
            raise
        return listening
    return None


def _means_here(address: str) -> bool:
    """Whether an address is this host for everyone on it, and nobody else."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return address == "localhost"
