"""Tiles that are decoded quickly: by processes that the server has started, and by the server itself.

Threads would take twice the processor time, because they wait for the interpreter's lock several times per
tile.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from collections import deque
from collections.abc import Callable
from typing import Any

from lobule.errors import LobuleError
from lobule.server.slide_tiles import OpenedImage
from lobule.server.tile_process import FAILED, LENGTH, request_line

log = logging.getLogger("lobule.server")

MOST_PROCESSES = 4
"""More of them would wait for the server, which sends the tiles."""
MOST_WAITING = 8
"""Requests that a process has received: enough that it works on while the server decodes a tile."""
START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])  # The modules of the server, and none from the current folder.
from lobule.server.tile_process import main
main()
"""
END_SECONDS = 2.0
MOST_REPLACED, REPLACED_SECONDS = 3, 60.0
"""At most so many processes are started within this time for others that have ended. A file that
ends every process that decodes it costs little then."""

Tile = tuple[OpenedImage, int, int, int]
"""An image and a level, a column and a row."""


class TileProcess(asyncio.SubprocessProtocol):
    """One process and the requests that it has not answered.

    Args:
        on_end: Called with the process when it has ended.
    """

    def __init__(self, on_end: Callable[[TileProcess], None]) -> None:
        loop = asyncio.get_running_loop()
        self._on_end = on_end
        self._transport: Any = None
        self._received = bytearray()
        self.is_ready = False
        self.ended: asyncio.Future[None] = loop.create_future()
        self.waiting: deque[asyncio.Future[bytes | None]] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    @property
    def pid(self) -> int:
        """The number by which the operating system knows the process."""
        return int(self._transport.get_pid())

    def decode(self, tile: Tile, answer: asyncio.Future[bytes | None]) -> None:
        """Request a tile. The answer is set to its JPEG, or to an error."""
        self.waiting.append(answer)
        self._transport.get_pipe_transport(0).write(request_line(*tile))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        received = self._received
        received += data
        while len(received) >= LENGTH.size:
            (length,) = LENGTH.unpack_from(received)
            end = LENGTH.size + max(0, length)
            if len(received) < end:
                return
            if not self.is_ready:
                self.is_ready = True
            elif not (answer := self.waiting.popleft()).done():
                if length == FAILED:
                    answer.set_exception(NotDecoded())
                else:
                    answer.set_result(bytes(received[LENGTH.size : end]))
            del received[:end]

    def pipe_connection_lost(self, fd: int, error: Exception | None) -> None:
        self._give_up()

    def process_exited(self) -> None:
        self._give_up()
        self.close()  # The pipes of a process that ended by itself.
        self.ended.set_result(None)
        self._on_end(self)

    def _give_up(self) -> None:
        self.is_ready = False
        while self.waiting:
            answer = self.waiting.popleft()
            if not answer.done():
                answer.set_exception(ProcessEnded())

    @property
    def cause_of_end(self) -> str:
        """Why a process that has ended did so."""
        status: int = self._transport.get_returncode()
        if status >= 0:
            return f"exit status {status}"
        name = signal.Signals(-status).name
        memory = ", perhaps because there was no memory left" if name == "SIGKILL" else ""
        return f"signal {name}{memory}"

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class NotDecoded(Exception):
    """A process cannot decode a tile, or its file has changed. The server then reports the error."""


class ProcessEnded(OSError):
    """A process has ended before it has answered, for example because there was no memory left."""


class TileProcesses:
    """Processes that are started when they are needed, and end with the server.

    A process that ends by itself is replaced.

    Args:
        count: Number of processes; 0 never starts any.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.may_start = False
        """Only a server that closes the processes when it ends may start them."""
        self._processes: list[TileProcess] = []
        self._is_started = False
        self._starting: set[asyncio.Task[None]] = set()
        self._replaced: deque[float] = deque(maxlen=MOST_REPLACED)
        """When processes were or will be started for others that have ended."""

    def free(self) -> TileProcess | None:
        """Return the process with the fewest requests; None if all have enough, or none is running."""
        ready = [
            process for process in self._processes if process.is_ready and len(process.waiting) < MOST_WAITING
        ]
        return min(ready, key=lambda process: len(process.waiting)) if ready else None

    def start(self) -> None:
        """Start the processes in the background, once."""
        if not self._is_started and self.may_start:
            self._is_started = True
            self._start_soon(self.count)

    async def close(self) -> None:
        """End the processes."""
        self.may_start = False
        if self._starting:
            await asyncio.wait(self._starting)
        processes = list(self._processes)
        for process in processes:
            process.close()
        if processes:
            await asyncio.wait([process.ended for process in processes], timeout=END_SECONDS)
        self._processes.clear()

    def _start_soon(self, count: int) -> None:
        if self.may_start and count:
            task = asyncio.get_running_loop().create_task(self._start(count))
            self._starting.add(task)
            task.add_done_callback(self._starting.discard)

    async def _start(self, count: int) -> None:
        loop = asyncio.get_running_loop()
        command = [sys.executable, "-I", "-c", START, json.dumps(sys.path)]
        # Ctrl-C reaches the processes of the terminal's group; these end when the server ends.
        group = {"creationflags": 0x200} if sys.platform == "win32" else {"start_new_session": True}
        try:
            for _ in range(count):
                _, process = await loop.subprocess_exec(
                    lambda: TileProcess(self._replace), *command, stderr=None, **group
                )
                if not process.ended.done():
                    self._processes.append(process)
        # The system may lack memory, and asyncio's selector event loop on Windows cannot start processes.
        except (OSError, NotImplementedError) as error:
            log.warning(
                "Only %d of %d processes that decode tiles could be started (%s: %s). The server decodes the "
                "other tiles itself, more slowly",
                len(self._processes), self.count, type(error).__name__, error,
            )  # fmt: skip

    def _replace(self, process: TileProcess) -> None:
        """Start a process for one that has ended by itself."""
        if process in self._processes:
            self._processes.remove(process)
        if not self.may_start:
            return
        loop = asyncio.get_running_loop()
        now = start = loop.time()
        if len(self._replaced) == MOST_REPLACED:
            start = max(now, self._replaced[0] + REPLACED_SECONDS)
        self._replaced.append(start)
        when = f"in {start - now:.0f} seconds" if start > now else "now"
        log.warning(
            "A process that decodes tiles has ended (%s). Another one is started %s",
            process.cause_of_end,
            when,
        )
        loop.call_at(start, self._start_soon, 1)


class TileQueue:
    """Tiles that wait for a process or for the server itself, whichever is free first.

    Args:
        processes: The processes.
        decode: Decodes a tile in the server.
    """

    def __init__(self, processes: TileProcesses, decode: Callable[[Tile], bytes]) -> None:
        self._processes, self._decode = processes, decode
        self._waiting: deque[tuple[Tile, asyncio.Future[bytes | None], asyncio.Future[None]]] = deque()

    def add(self, tile: Tile, gone: asyncio.Future[None]) -> asyncio.Future[bytes | None]:
        """Return a future tile; None if the client has gone before it was decoded.

        Raises:
            NotDecoded: A process cannot decode the tile.
            ProcessEnded: A process ended before it answered, perhaps because of this tile.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((tile, answer, gone))
        if len(self._waiting) == 1:
            loop.call_soon(self._step)
        return answer

    def _step(self) -> None:
        """Give tiles to the processes and decode one here. The loop then looks at its connections again."""
        is_decoded = False
        while self._waiting and not is_decoded:
            tile, answer, gone = self._waiting[0]
            process = self._processes.free()
            if gone.done():
                answer.set_result(None)
            elif process is not None:
                process.decode(tile, answer)
            else:
                is_decoded = True
                self._decode_here(tile, answer)
            self._waiting.popleft()
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._step)

    def _decode_here(self, tile: Tile, answer: asyncio.Future[bytes | None]) -> None:
        try:
            answer.set_result(self._decode(tile))
        except (OSError, LobuleError) as error:
            answer.set_exception(error)
