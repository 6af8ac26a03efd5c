"""Runs the viewer's application in a web server: uvicorn, or granian where it is installed."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
from contextlib import suppress
from typing import Literal

from lobule.errors import UsageError
from lobule.server.gate import App

ServerName = Literal["uvicorn", "granian"]

KEEP_ALIVE_SECONDS = 75
"""Connections without a request stay open for this time. A client that closes them sooner, as browsers and
libraries do, never sends a request on a connection that the server is closing."""


def serve(app: App, listening: socket.socket, server: ServerName = "uvicorn") -> None:
    """Serve until Ctrl-C.

    Args:
        app: The ASGI application.
        listening: The socket to listen on.
        server: The web server.

    Raises:
        UsageError: granian is not installed.
    """
    if server == "granian":
        _serve_with_granian(app, listening)
    else:
        _serve_with_uvicorn(app, listening)


def _serve_with_uvicorn(app: App, listening: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=1,
        server_header=False, date_header=False, proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
    )  # fmt: skip
    _spare_lasting_objects()
    uvicorn.Server(config).run(sockets=[listening])


def _spare_lasting_objects() -> None:
    """Exclude the objects that exist when the server starts from garbage collection.

    Tiles create many small objects, so collections are frequent. Visiting the modules each time took a sixth
    of the server's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def _serve_with_granian(app: App, listening: socket.socket) -> None:
    """Granian opens the address itself, so the socket that reserved it is closed first."""
    try:
        from granian.constants import Interfaces
        from granian.server.embed import Server
    except ModuleNotFoundError as error:
        raise UsageError("granian is not installed", remedy="pip install granian") from error
    address, port = listening.getsockname()[:2]
    listening.close()
    server = Server(
        app, address=address, port=port, interface=Interfaces.ASGI, backlog=512, log_enabled=False,
        websockets=False,
    )  # fmt: skip

    async def run() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        await server.serve()

    with suppress(KeyboardInterrupt):
        asyncio.run(run())
