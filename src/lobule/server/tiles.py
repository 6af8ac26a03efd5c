"""The route of image tiles: a plain ASGI application, because it answers most of the requests.

Tiles that the file stores as JPEG are sent unchanged. Other tiles are decoded in a bounded pool of threads.
Where that takes less time than waiting for a thread, they are decoded by the server itself, one at a time,
and by a few processes if there are many.
"""

from __future__ import annotations

import asyncio
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from math import inf
from typing import Any, NamedTuple

from lobule.errors import LobuleError
from lobule.server.gate import IMAGE_HEADERS, Receive, Scope, Send, answer
from lobule.server.library import Library
from lobule.server.pixels import ByteCache
from lobule.server.slide_tiles import OpenedImage, Slides
from lobule.server.tile_processes import NotDecoded, Tile, TileProcesses, TileQueue

PATH = re.compile(r"/tiles/([0-9a-f]{24})/([0-9]{1,2})/([0-9]{1,7})/([0-9]{1,7})\.jpg")
IMMUTABLE = b"private, max-age=31536000, immutable"
CHECK_SECONDS = 0.2
"""A file is checked for changes at most once in this time, because a page requests many tiles at once."""
MAX_RECENT = 16
FAST_SECONDS = 0.002
"""Tiles of a level that take less time are decoded at once: waiting for a thread would take longer."""
SLOW_SECONDS = 0.01
"""Tiles that take more time by the clock are decoded by threads."""
MAX_TIMED_LEVELS = 1000
BUSY_SECONDS = 0.02
"""Processes are started when fast tiles take more than this time to decode within a second."""
READY_BYTES = 96 << 20
"""Tiles, stored and encoded ones, that stay in memory."""
CASE_ID = slice(len("/tiles/"), len("/tiles/") + 24)
"""Where the path of a tile has the id of its case."""


class ReadyTile(NamedTuple):
    """A tile in memory, with the messages that send it."""

    image: OpenedImage
    tag: bytes
    start: dict[str, Any]
    body: dict[str, Any]


class DecodingTimes:
    """Decides whether the tiles of a level are decoded at once or by a thread."""

    def __init__(self) -> None:
        self._averages: dict[tuple[bytes, int], tuple[float, float]] = {}
        """Seconds per tile by the processor's time, and by the clock where tiles were decoded at once."""

    def are_fast(self, image: OpenedImage, level: int) -> bool:
        return self._averages.get((image.tag, level), (inf, 0.0))[0] < FAST_SECONDS

    def add(
        self, image: OpenedImage, level: int, processor_seconds: float, clock_seconds: float | None = None
    ) -> None:
        """Add the time of a tile; `clock_seconds` only if all other requests have waited for it.

        A level whose tiles were slow by the clock, for example on a slow disk, remains with the threads. On a
        busy machine, the clock runs on while others use the processor, so this limit is higher.
        """
        key = image.tag, level
        processor, clock = self._averages.get(key, (processor_seconds, 0.0))
        processor = 0.8 * processor + 0.2 * processor_seconds
        clock = clock if clock_seconds is None else 0.8 * clock + 0.2 * clock_seconds
        if len(self._averages) >= MAX_TIMED_LEVELS:
            self._averages.clear()
        self._averages[key] = processor if clock < SLOW_SECONDS else inf, clock


class Tiles:
    """Serves `/tiles/CASE/LEVEL/COLUMN/ROW.jpg`; level 0 is the finest."""

    def __init__(
        self, library: Library, slides: Slides, threads: int, processes: TileProcesses | None = None
    ) -> None:
        self.library, self.slides = library, slides
        self._processes = processes or TileProcesses(0)
        self._queue = TileQueue(self._processes, self._decode_at_once)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="tiles")
        self._slots = asyncio.Semaphore(2 * threads)
        self._window_start = self._window_seconds = 0.0
        self._times = DecodingTimes()
        self._ready = ByteCache(READY_BYTES)
        self._recent: dict[str, tuple[float, OpenedImage]] = {}
        """Images by case, with the time when their files were checked."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tile: ReadyTile | None = self._ready.get(scope["path"])
        if (
            tile is None
            or scope["method"] != "GET"
            or not self._is_current(scope["path"][CASE_ID], tile.image)
        ):
            await self._answer(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"if-none-match" and value == tile.tag:
                await _send(send, 304, b"", tile.tag)
                return
        await send(tile.start)
        await send(tile.body)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a tile that is not in memory."""
        path: str = scope["path"]
        match = PATH.fullmatch(path)
        if match is None or scope["method"] not in ("GET", "HEAD"):
            await answer(send, 404, "There is no such tile.")
            return
        level, column, row = (int(number) for number in match.groups()[1:])
        try:
            image = self._image(match[1])
            tag = _tag(image, level, column, row)
        except (KeyError, OSError, LobuleError):
            await answer(send, 404, "There is no such tile.")
            return
        if tag is None:
            await answer(send, 404, "There is no such tile.")
            return
        if dict(scope["headers"]).get(b"if-none-match") == tag:
            await _send(send, 304, b"", tag)
            return
        ready: ReadyTile | None = self._ready.get(path)
        try:
            if ready is not None and ready.image is image:
                data: bytes | None = ready.body["body"]
            else:
                data = self.slides.stored_tile(image, level, column, row)
            if data is None:
                data = await self._decoded(image, level, column, row, receive)
        except (OSError, LobuleError):
            await answer(send, 404, "The tile cannot be read.")
            return
        if data is None:
            return
        tile = ReadyTile(image, tag, *_messages(200, data, tag, len(data)))
        self._ready.put(path, tile, len(data))
        await _send(send, 200, b"" if scope["method"] == "HEAD" else data, tag, len(data))

    def _is_current(self, case_id: str, image: OpenedImage) -> bool:
        """Whether an image is the one of a case, and its file was checked a moment ago."""
        recent = self._recent.get(case_id)
        return recent is not None and recent[1] is image and time.monotonic() - recent[0] < CHECK_SECONDS

    def _image(self, case_id: str) -> OpenedImage:
        now = time.monotonic()
        recent = self._recent.get(case_id)
        if recent is not None and now - recent[0] < CHECK_SECONDS:
            return recent[1]
        self._recent.pop(case_id, None)
        file = self.library.images(self.library.entry(case_id))["slide"]
        image = self.slides.open(file.path, file.mpp)
        if len(self._recent) >= MAX_RECENT:
            self._recent.clear()
        self._recent[case_id] = now, image
        return image

    async def _decoded(
        self, image: OpenedImage, level: int, column: int, row: int, receive: Receive
    ) -> bytes | None:
        """Decode a tile when a process or thread is free; None if the client has gone by then."""
        gone = asyncio.ensure_future(_disconnect(receive))
        try:
            if self._times.are_fast(image, level):
                with suppress(NotDecoded):
                    return await self._queue.add((image, level, column, row), gone)
            async with self._slots:
                if gone.done():
                    return None
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._pool, self._decode_timed, image, level, column, row)
        finally:
            gone.cancel()

    def _decode_at_once(self, tile: Tile) -> bytes:
        start, processor_start = time.monotonic(), time.thread_time()
        data = self.slides.decoded_tile(*tile)
        seconds = time.monotonic() - start
        self._times.add(*tile[:2], time.thread_time() - processor_start, seconds)
        self._count(seconds)
        return data

    def _decode_timed(self, image: OpenedImage, level: int, column: int, row: int) -> bytes:
        start = time.thread_time()
        data = self.slides.decoded_tile(image, level, column, row)
        self._times.add(image, level, time.thread_time() - start)
        return data

    def _count(self, seconds: float) -> None:
        """Start the processes if tiles took much time to decode within the last second."""
        now = time.monotonic()
        if now - self._window_start > 1:
            self._window_start, self._window_seconds = now, 0.0
        self._window_seconds += seconds
        if self._window_seconds > BUSY_SECONDS:
            self._processes.start()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _tag(image: OpenedImage, level: int, column: int, row: int) -> bytes | None:
    """Return the ETag of a tile; None if the image has no such tile."""
    if level >= len(image.levels):
        return None
    size, tile = image.levels[level].size, image.levels[level].tile
    if column * tile.width >= size.width or row * tile.height >= size.height:
        return None
    return b'"%s-%d-%d-%d"' % (image.tag, level, column, row)


async def _send(send: Send, status: int, data: bytes, tag: bytes, length: int | None = None) -> None:
    for message in _messages(status, data, tag, length):
        await send(message)


def _messages(
    status: int, data: bytes, tag: bytes, length: int | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    headers = [(b"etag", tag), (b"cache-control", IMMUTABLE), *IMAGE_HEADERS]
    if status == 200:
        headers += [(b"content-type", b"image/jpeg"), (b"content-length", str(length).encode())]
    start = {"type": "http.response.start", "status": status, "headers": headers}
    return start, {"type": "http.response.body", "body": data}
