"""Serve the tiles of one slide with one of the contenders of `benchmarks/server.py`.

    python benchmarks/peers/serve_tiles.py CONTENDER SLIDE PORT

It prints the pattern of the address of a level-0 tile, with {column} and {row}, and serves until it is
killed.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any


def lobule(path: str, port: int) -> None:
    """The viewer's server, as `lobule view SLIDE` starts it."""
    import socket

    from lobule.cli.view import open_library
    from lobule.server.app import create_app
    from lobule.server.serving import serve

    library = open_library([path], None, None)
    announce(f"/tiles/{library.entries()[0].id}/0/{{column}}/{{row}}.jpg")
    serve(create_app(library), socket.create_server(("127.0.0.1", port), backlog=512))


def bare(path: str, port: int) -> None:
    """An ASGI application that does nothing but return the bytes that Lobule's server sends."""
    from lobule.server.slide_tiles import Slides

    slides = Slides()
    image = slides.open(path, None)
    size, tile = image.levels[0].size, image.levels[0].tile
    columns, rows = -(-size.width // tile.width), -(-size.height // tile.height)
    bodies = {
        f"/{column}/{row}.jpg": slides.stored_tile(image, 0, column, row)
        for column in range(columns)
        for row in range(rows)
    }

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = bodies[scope["path"]]
        headers = [(b"content-type", b"image/jpeg"), (b"content-length", b"%d" % len(body or b""))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    announce("/{column}/{row}.jpg")
    run_uvicorn(app, port)


def large_image_tornado(path: str, port: int, *, correct: bool = True, **jpeg: int) -> None:
    """large_image's own tile server, which its Jupyter viewer uses."""
    import large_image
    from large_image.tilesource.jupyter import launch_tile_server

    large_image.config.setConfig("icc_correction", correct)
    source = large_image.open(path, encoding="JPEG", **jpeg)

    async def serve() -> None:
        launch_tile_server(source, port)
        announce(f"/tile?x={{column}}&y={{row}}&z={source.levels - 1}&encoding=JPEG")
        await asyncio.Event().wait()

    asyncio.run(serve())


def large_image_asgi(path: str, port: int) -> None:
    """large_image's tiles without colour correction, sent by an ASGI application of four lines."""
    import large_image

    large_image.config.setConfig("icc_correction", False)
    source = large_image.open(path, encoding="JPEG")
    level = source.levels - 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        _, column, row = scope["path"].split("/")
        body = bytes(source.getTile(int(column), int(row), level))
        headers = [(b"content-type", b"image/jpeg"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    announce("/{column}/{row}")
    run_uvicorn(app, port)


def tiatoolbox(path: str, port: int) -> None:
    """TIAToolbox's tile server, started as its `visualize` command starts it."""
    from tiatoolbox.visualization.tileserver import TileServer  # type: ignore[import-not-found]
    from tiatoolbox.wsicore.wsireader import WSIReader  # type: ignore[import-not-found]

    server = TileServer("benchmark", {"slide": WSIReader.open(path)})
    level = server.pyramids["default"]["slide"].level_count - 1
    announce(f"/tileserver/layer/slide/default/zoomify/TileGroup0/{level}-{{column}}-{{row}}@1x.jpg")
    server.run(host="127.0.0.1", port=port, threaded=True)


CONTENDERS: dict[str, Callable[[str, int], None]] = {
    "lobule": lobule,
    "bare ASGI": bare,
    "large_image": large_image_tornado,
    "large_image, no ICC": lambda path, port: large_image_tornado(path, port, correct=False),
    "large_image, same JPEG": lambda path, port: large_image_tornado(
        path, port, correct=False, jpegQuality=88, jpegSubsampling=2
    ),
    "large_image in ASGI, no ICC": large_image_asgi,
    "tiatoolbox": tiatoolbox,
}


def announce(pattern: str) -> None:
    print("TILE", pattern, flush=True)


def run_uvicorn(app: Any, port: int) -> None:
    import uvicorn

    config = uvicorn.Config(
        app, port=port, log_level="warning", access_log=False, lifespan="off", server_header=False,
        date_header=False, backlog=512,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    name, slide, number = sys.argv[1:]
    CONTENDERS[name](slide, int(number))
