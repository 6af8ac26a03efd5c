"""The application: the API of the viewer, its pages, and the tiles beside them behind one gate."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response

from lobule import __version__
from lobule.errors import ConfigError, LobuleError, NotReadable
from lobule.server.gate import App, Gate
from lobule.server.library import Library
from lobule.server.options import ServerOptions
from lobule.server.review_routes import router as review_router
from lobule.server.routes import router
from lobule.server.service import Service
from lobule.server.tile_processes import MOST_PROCESSES, TileProcesses
from lobule.server.tiles import Tiles

__all__ = ["STATIC", "Library", "ServerOptions", "create_app", "is_built", "new_token"]

MAP_LIBRARY = "zarr"
"""Importing it takes a third of a second, so it is imported before the first map is opened."""
STATIC = Path(__file__).parent / "static"


def create_app(library: Library, options: ServerOptions | None = None) -> App:
    """Return the ASGI application of the viewer."""
    options = options or ServerOptions()
    service = Service(library, options)
    cores = os.cpu_count() or 1
    processes = TileProcesses(min(cores - 1, MOST_PROCESSES))

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        processes.may_start = True
        threading.Thread(target=_prepare, args=(service,), daemon=True).start()
        yield
        await processes.close()

    api = FastAPI(
        title="Lobule viewer",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    api.state.service = service
    api.include_router(router)
    api.include_router(review_router)
    api.add_api_route("/{path:path}", _page, methods=["GET"], include_in_schema=False)
    api.add_exception_handler(RequestValidationError, _invalid_request)
    api.add_exception_handler(LobuleError, _lobule_error)
    api.add_exception_handler(OSError, _os_error)
    tiles = Tiles(library, service.pixels.slides, cores, processes)
    return Gate(api, tiles, options.hosts, options.token)


def _prepare(service: Service) -> None:
    """Read what the first page and the first map need, while the browser starts."""
    with suppress(LobuleError, OSError):  # The list reports them when it is requested.
        service.summaries()
    import_module(MAP_LIBRARY)


def new_token() -> str:
    return secrets.token_urlsafe(24)


def is_built(static: Path = STATIC) -> bool:
    return (static / "index.html").is_file()


def _page(path: str) -> Response:
    """The viewer's files; every other path is 404."""
    files = _static_files()
    name = path or "index.html"
    if name not in files:
        return JSONResponse({"error": "There is no such page."}, 404)
    headers = {
        "cache-control": "no-cache" if name == "index.html" else "private, max-age=31536000, immutable"
    }
    return FileResponse(files[name], headers=headers)


def _static_files() -> Mapping[str, Path]:
    """Return the files of the built viewer by their path in the URL."""
    return {
        path.relative_to(STATIC).as_posix(): path
        for path in STATIC.rglob("*")
        if path.is_file() and path.name[0] != "."
    }


def _invalid_request(request: Request, error: Exception) -> Response:
    """Name the parameters that are not valid. Their values may be anything, so they are not repeated."""
    problems = error.errors() if isinstance(error, RequestValidationError) else []
    detail = [{"loc": [str(step) for step in one["loc"]], "type": one["type"]} for one in problems]
    text = "; ".join(f"{'.'.join(one['loc'])}: {one['type']}" for one in detail)
    body = json.dumps({"error": f"The request is not valid ({text})", "detail": detail})
    return Response(body, 422, media_type="application/json")


def _lobule_error(request: Request, error: Exception) -> JSONResponse:
    status = 404 if isinstance(error, NotReadable) else 422 if isinstance(error, ConfigError) else 409
    return JSONResponse({"error": getattr(error, "problem", "The request failed.")}, status)


def _os_error(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "The file is not there or cannot be read."}, 404)
