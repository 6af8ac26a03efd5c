"""Many clients at once, and requests that are given up: the server answers everyone else correctly."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import tifffile
import uvicorn

from lobule.server.app import create_app
from lobule.server.library import Library, Source
from lobule.server.slide_tiles import Slides
from lobule.stitch import State
from tests.server.support import begin, build_scene, squares, write_case

CLIENTS = 200
ABORTED = 300


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    root = tmp_path_factory.mktemp("load")
    for name in ("jpeg", "zlib"):
        (root / name).mkdir()
    scene = build_scene(root / "jpeg")
    zipped = root / "zlib.tif"
    tifffile.imwrite(zipped, squares(4000, 3000), tile=(256, 256), compression="zlib", photometric="rgb")
    other = begin(root / "zlib", ["decoded"])
    write_case(
        other, "decoded", zipped, np.zeros((4, 4), np.float32), np.full((4, 4), State.GLASS, np.uint8), []
    )
    library = Library([Source("jpeg", scene.results), Source("zlib", other)])
    config = uvicorn.Config(
        create_app(library), port=0, log_level="error", lifespan="off", backlog=1024,
        timeout_keep_alive=600,  # httpx closes connections after 5 s, uvicorn's default, and both would meet.
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}", port
    server.should_exit = True
    thread.join()


def urls_of(base: str) -> list[str]:
    ids = {row["name"]: row["id"] for row in httpx.get(f"{base}/api/cases", timeout=60).json()}
    one, decoded = ids["one"], ids["decoded"]
    urls = [f"{base}/tiles/{one}/0/{column}/{row}.jpg" for column in range(4) for row in range(3)]
    urls += [f"{base}/tiles/{decoded}/0/{column}/{row}.jpg" for column in range(5) for row in range(4)]
    urls += [f"{base}/api/cases/{one}", f"{base}/api/cases/{one}/findings?limit=5"]
    return [*urls, f"{base}/api/cases/{one}/map?name=tumour&layer=1&level=0&column=0&row=0"]


def test_200_clients_at_once_get_the_answers_of_one(server: tuple[str, int]) -> None:
    base, _ = server
    urls = urls_of(base)
    alone = {url: httpx.get(url, timeout=60).content for url in urls}

    async def client(session: httpx.AsyncClient, number: int) -> list[str]:
        wrong = []
        for offset in range(3):
            url = urls[(number + 7 * offset) % len(urls)]
            answer = await session.get(url)
            if answer.status_code != 200 or answer.content != alone[url]:
                wrong.append(f"{url} {answer.status_code}")
        return wrong

    async def all_clients() -> list[list[str]]:
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=CLIENTS)) as session:
            return await asyncio.gather(*(client(session, number) for number in range(CLIENTS)))

    assert [wrong for wrong in asyncio.run(all_clients()) if wrong] == []


def test_aborted_requests_are_not_decoded_and_block_nobody(
    server: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, port = server
    urls = [url.removeprefix(base) for url in urls_of(base) if "/tiles/" in url][12:]
    decoded: list[int] = []
    decode = Slides.decoded_tile

    def slow(self: Slides, *arguments) -> bytes:
        decoded.append(1)
        time.sleep(0.05)
        return decode(self, *arguments)

    monkeypatch.setattr(Slides, "decoded_tile", slow)
    for number in range(ABORTED):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            url = urls[number % len(urls)]
            connection.sendall(f"GET {url} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    answer = httpx.get(base + urls[0], timeout=60)
    assert answer.status_code == 200 and answer.content.startswith(b"\xff\xd8")
    assert httpx.get(f"{base}/api/session", timeout=60).status_code == 200
    assert len(decoded) < ABORTED / 2  # Most clients had gone before their turn came.


def test_a_slow_reader_does_not_stop_others(server: tuple[str, int], tmp_path: Path) -> None:
    base, port = server
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(b"GET /api/cases HTTP/1.1\r\nHost: 127.0.0.1\r\n")  # never finished
        assert httpx.get(f"{base}/api/session", timeout=60).status_code == 200
