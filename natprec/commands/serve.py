"""`natprec serve`: a checkpoint behind an endpoint that OpenAI's clients understand."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from natprec.commands.options import configured, own
from natprec.config import QuantizeConfig
from natprec.errors import InputError
from natprec.utils.options import METHOD

EXAMPLES = ("natprec serve quantized", "natprec serve quantized --port 8001 --device cuda")

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@configured
def serve(
    config: QuantizeConfig,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR|ID", help="Checkpoint in compressed-tensors format, or its Hub id.")
    ],
    host: Annotated[str, own("--host", METHOD, "Address to listen on; with 0.0.0.0 other machines can reach it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, own("--port", METHOD, "Port to listen on; 0: any free one.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, own("--name", METHOD, "Name of the model for clients; default: the folder's name.")] = (
        None
    ),
) -> None:
    """Serve a checkpoint on its codes: /v1/models, /v1/chat/completions and /v1/completions, with streaming.

    One request runs at a time while the others wait. Ctrl-C stops the server.
    """
    listening = _bound(host, port)
    with listening:
        try:
            import uvicorn

            from natprec.serving.app import Endpoint
        except ImportError as error:
            raise InputError(
                f"natprec serve needs starlette and uvicorn ({error}); run: pip install starlette uvicorn"
            ) from error
        from natprec.models.devices import limit_gpu_memory
        from natprec.runtime.generate import refuse_silent
        from natprec.runtime.load import load

        limit_gpu_memory(config.device, config.gpu_memory)
        runnable = load(folder, device=config.device, trust_remote_code=config.trust_remote_code)
        refuse_silent(runnable)
        called = name or folder.resolve().name
        app = Endpoint(runnable, called).app()
        where = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/v1"
        print(f"serving {called} at {where}", file=sys.stderr, flush=True)
        if host not in LOOPBACK:
            print("everybody who reaches this address can use the model: there is no key", file=sys.stderr, flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


def _bound(host: str, port: int) -> socket.socket:
    """A listening address, taken before the model is loaded.

    Raises:
        InputError: it is in use, or not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind, protocol)
    except OSError as error:
        raise InputError(f"host {host!r} is no address ({error.strerror or error}); give 127.0.0.1") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        made.close()
        raise InputError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); give another --port, or --port 0 for any"
        ) from error
    return made
