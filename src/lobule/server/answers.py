"""What the routes share: the types of parameters, the service of a request, and binary answers."""

from __future__ import annotations

import hashlib
from typing import Annotated

from fastapi import Path as PathParameter
from fastapi import Query, Request
from fastapi.responses import Response

from lobule.server.service import Service

BINARY = "application/octet-stream"

CaseId = Annotated[str, PathParameter(pattern=r"^[0-9a-f]{24}$")]
OtherCase = Annotated[str, Query(pattern=r"^([0-9a-f]{24}|truth)$")]
Index = Annotated[int, Query(ge=0, le=10_000_000)]
Layer = Annotated[int, Query(ge=0, le=1000)]
Level = Annotated[int, Query(ge=0, le=30)]
Label = Annotated[str | None, Query(max_length=200)]
Text = Annotated[str, Query(max_length=500)]
Coordinate = Annotated[float, Query(ge=-1e7, le=1e7, allow_inf_nan=False)]
Extent = Annotated[float, Query(gt=0, le=1e7, allow_inf_nan=False)]


def service_of(request: Request) -> Service:
    """Return the state that all routes share."""
    service: Service = request.app.state.service
    return service


def binary_answer(request: Request, data: bytes, media_type: str, *, compressed: bool = False) -> Response:
    """Return bytes with an ETag of their content; 304 if the client has them."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    if compressed:
        headers["content-encoding"] = "deflate"
    return Response(data, media_type=media_type, headers=headers)
