"""The processes that decode tiles: they give the server's own tiles, and end with it."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import tifffile

from lobule.server import tile_processes
from lobule.server.slide_tiles import OpenedImage, Slides
from lobule.server.tile_processes import NotDecoded, ProcessEnded, TileProcess, TileProcesses, TileQueue
from tests.server.support import squares

SERVE = """
import socket, sys
from contextlib import suppress
from lobule.cli.view import open_library
from lobule.server import tiles
from lobule.server.app import create_app
from lobule.server.serving import serve

tiles.BUSY_SECONDS = 0.0
library = open_library(sys.argv[1:2], None, None)
listening = socket.create_server(("127.0.0.1", 0))
print(library.entries()[0].id, listening.getsockname()[1], flush=True)
with suppress(KeyboardInterrupt):
    serve(create_app(library), listening, sys.argv[2])
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> OpenedImage:
    path = tmp_path_factory.mktemp("processes") / "deflate.tif"
    tifffile.imwrite(path, squares(1400, 1200), tile=(128, 128), compression="zlib", photometric="rgb")
    return Slides().open(str(path), 0.5)


def with_process(use: Callable[[TileProcesses, TileProcess], Awaitable[Any]]) -> Any:
    """Call a function with one running process."""

    async def run() -> Any:
        processes = TileProcesses(1)
        processes.start()
        assert processes.free() is None  # A server that does not say when it ends starts none.
        processes.may_start = True
        processes.start()
        while (process := processes.free()) is None:
            await asyncio.sleep(0.02)
        try:
            return await asyncio.wait_for(use(processes, process), 60)
        finally:
            await processes.close()
            assert process.ended.done()

    return asyncio.run(run())


def never(count: int) -> list[asyncio.Future[None]]:
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


def test_a_process_and_the_server_share_the_work_and_give_the_same_tiles(
    image: OpenedImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tile_processes, "MOST_WAITING", 3)
    slides, positions = Slides(), [(column, row) for row in range(10) for column in range(11)]
    decoded_here: list[tuple[int, int]] = []

    def decode(tile: tile_processes.Tile) -> bytes:
        decoded_here.append(tile[2:])
        return slides.decoded_tile(*tile)

    async def use(processes: TileProcesses, process: TileProcess) -> list[bytes | None]:
        queue = TileQueue(processes, decode)
        futures = [queue.add((image, 0, *at), gone) for at, gone in zip(positions, never(110), strict=True)]
        return list(await asyncio.gather(*futures))

    tiles = with_process(use)
    assert tiles == [Slides().decoded_tile(image, 0, *at) for at in positions]
    assert 0 < len(decoded_here) < len(positions)
    assert not set(positions[:3]) & set(decoded_here)  # The process was free for the first ones.


@pytest.mark.parametrize(
    "error", [NotImplementedError("event loop on Windows"), OSError("too little memory")]
)
def test_a_server_without_processes_says_so_and_decodes_tiles_itself(
    image: OpenedImage,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise error

    async def decode() -> bytes | None:
        monkeypatch.setattr(asyncio.get_running_loop(), "subprocess_exec", refuse)
        processes = TileProcesses(2)
        processes.may_start = True
        processes.start()
        await asyncio.sleep(0)
        queue = TileQueue(processes, lambda tile: Slides().decoded_tile(*tile))
        try:
            return await queue.add((image, 0, 1, 2), *never(1))
        finally:
            await processes.close()

    with caplog.at_level(logging.WARNING, "lobule.server"):
        assert asyncio.run(decode()) == Slides().decoded_tile(image, 0, 1, 2)
    assert "Only 0 of 2 processes" in caplog.text and str(error) in caplog.text


def test_tiles_of_clients_that_have_gone_are_not_decoded(image: OpenedImage) -> None:
    decoded: list[int] = []

    def decode(tile: tile_processes.Tile) -> bytes:
        decoded.append(tile[2])
        return bytes([tile[2]])

    async def run() -> list[bytes | None]:
        queue = TileQueue(TileProcesses(0), decode)
        waiting = never(300)
        futures = [queue.add((image, 0, number % 11, 0), gone) for number, gone in enumerate(waiting)]
        for gone in waiting[1:-1]:
            gone.set_result(None)
        return list(await asyncio.gather(*futures))

    answers = asyncio.run(run())
    assert answers == [b"\x00"] + [None] * 298 + [bytes([299 % 11])]
    assert decoded == [0, 299 % 11]


def test_a_process_that_is_killed_fails_its_requests_only_and_is_replaced(
    image: OpenedImage, caplog: pytest.LogCaptureFixture
) -> None:
    async def use(processes: TileProcesses, process: TileProcess) -> bytes | None:
        queue = TileQueue(processes, lambda tile: b"here")
        child = psutil.Process(process.pid)
        child.suspend()
        future = queue.add((image, 0, 0, 0), *never(1))
        await asyncio.sleep(0)
        child.kill()
        with pytest.raises(ProcessEnded):
            await future
        await process.ended
        assert processes.free() is None
        assert await queue.add((image, 0, 0, 0), *never(1)) == b"here"
        while (other := processes.free()) is None:
            await asyncio.sleep(0.02)
        assert other.pid != process.pid
        return await queue.add((image, 0, 0, 0), *never(1))

    with caplog.at_level(logging.WARNING, "lobule.server"):
        assert with_process(use) == Slides().decoded_tile(image, 0, 0, 0)
    assert (
        "ended (signal SIGKILL, perhaps because there was no memory left). Another one is started now"
        in caplog.text
    )


class FailingTransport(asyncio.SubprocessTransport):
    def get_returncode(self) -> int:
        return 3

    def close(self) -> None:
        pass


def test_processes_that_end_again_and_again_are_replaced_a_few_times_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[TileProcess] = []

    async def fail(
        new: Callable[[], TileProcess], *_: Any, **__: Any
    ) -> tuple[FailingTransport, TileProcess]:
        started.append(new())
        started[-1].connection_made(FailingTransport())
        started[-1].process_exited()
        return FailingTransport(), started[-1]

    async def run() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "subprocess_exec", fail)
        processes = TileProcesses(1)
        processes.may_start = True
        processes.start()
        for _ in range(100):
            await asyncio.sleep(0)
        await processes.close()

    with caplog.at_level(logging.WARNING, "lobule.server"):
        asyncio.run(run())
    assert len(started) == 1 + tile_processes.MOST_REPLACED
    assert (
        caplog.text.count("ended (exit status 3). Another one is started now") == tile_processes.MOST_REPLACED
    )
    assert caplog.text.count("Another one is started in 60 seconds") == 1


def test_a_tile_of_a_file_that_has_changed_is_left_to_the_server(image: OpenedImage, tmp_path: Path) -> None:
    path = tmp_path / "changed.tif"
    path.write_bytes(Path(image.slide.path).read_bytes())
    before = Slides().open(str(path), None)
    os.utime(path, ns=(1, 1))

    async def use(processes: TileProcesses, process: TileProcess) -> None:
        with pytest.raises(NotDecoded):
            await TileQueue(processes, lambda tile: b"").add((before, 0, 0, 0), *never(1))

    with_process(use)


def wait_for_answer(url: str) -> None:
    """Wait until a server answers. Granian closes the reserved socket, and clients of it, before it listens."""
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx.get(url, timeout=60)
            return
        except httpx.TransportError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@pytest.fixture(params=["uvicorn", "granian"])
def serving(request: pytest.FixtureRequest, image: OpenedImage) -> Iterator[tuple[psutil.Process, str]]:
    if request.param == "granian":
        pytest.importorskip("granian")
    command = [sys.executable, "-c", SERVE, str(image.slide.path), request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        case, port = process.stdout.readline().split()
        wait_for_answer(f"http://127.0.0.1:{port}/")
        yield psutil.Process(process.pid), f"http://127.0.0.1:{port}/tiles/{case}/0"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert errors == ""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="On one core, the server decodes every tile itself.")
def test_a_busy_server_starts_processes_and_ctrl_c_ends_them(
    serving: tuple[psutil.Process, str], image: OpenedImage
) -> None:
    server, url = serving
    with httpx.Client(timeout=60) as client:
        for number in range(20):
            answer = client.get(f"{url}/{number % 11}/{number // 11}.jpg")
            assert answer.content == Slides().decoded_tile(image, 0, number % 11, number // 11)
        deadline = time.monotonic() + 60
        while not server.children() and time.monotonic() < deadline:
            time.sleep(0.05)
        children = server.children()
        assert children
        loaded = [mapping.path for child in children for mapping in child.memory_maps()]
        assert not [path for path in loaded if "libtorch" in path]
        server.send_signal(signal.SIGINT)
    assert server.wait(60) is not None
    gone, alive = psutil.wait_procs(children, 30)
    assert len(gone) == len(children) and not alive
