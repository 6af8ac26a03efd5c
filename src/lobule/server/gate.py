"""Decides which requests are answered: the host name, the token, and the origin of requests that write."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "lobule-token"
TILE_ROUTE = "/tiles/"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
MAX_BODY = 256 << 10
MAX_PATH = 2048
READING = frozenset({"GET", "HEAD"})
WRITING_HEADER = b"x-lobule"
"""Header that a request that writes must have. A form of another site cannot send it."""

SECURITY_HEADERS: list[tuple[bytes, bytes]] = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
]

IMAGE_HEADERS = [SECURITY_HEADERS[0], (b"cross-origin-resource-policy", b"same-origin")]
"""The headers that protect an image, which runs no code."""


class Gate:
    """ASGI middleware in front of every route.

    Args:
        app: The application.
        tiles: The application that answers requests for image tiles.
        hosts: Host names under which the server may be called.
        token: Secret that a client has to present once in the URL and then in a cookie; None requires none.
    """

    def __init__(self, app: App, tiles: App, hosts: frozenset[str], token: str | None = None) -> None:
        self.app, self.tiles, self.hosts, self.token = app, tiles, hosts, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await answer(send, *refusal)
            return
        if self.token is not None and not self._has_cookie(headers):
            await self._admit(scope, send)
            return
        limited = receive if scope["method"] in READING else _limited(receive)
        if scope["path"].startswith(TILE_ROUTE):
            # Tiles have the headers that matter for images; each further one costs time for every tile.
            await self.tiles(scope, limited, send)
            return
        await self.app(scope, limited, _secured(send))

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> tuple[int, str] | None:
        host = headers.get(b"host", b"")
        if host_name(host) not in self.hosts:
            return (
                421,
                "This host name is not the server's. Start the viewer with --allow-host NAME to allow it.",
            )
        if len(scope["path"]) > MAX_PATH or "\0" in scope["path"]:
            return 404, "There is no such page."
        if headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none") and not _is_page(
            scope, headers
        ):
            return 403, "Requests of other sites are refused."
        if scope["method"] in READING:
            return None
        origin = headers.get(b"origin", b"").lower()
        if WRITING_HEADER not in headers or origin.partition(b"://")[2] != host.lower():
            return 403, "Only the viewer's own pages may write."
        if not headers.get(b"content-type", b"").startswith(b"application/json"):
            return 415, "The body must be JSON."
        if not _is_small(headers.get(b"content-length")):
            return 413, f"The body is larger than {MAX_BODY:,} bytes, or its length is not stated."
        return None

    def _has_cookie(self, headers: dict[bytes, bytes]) -> bool:
        assert self.token is not None
        try:
            cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, self.token)

    async def _admit(self, scope: Scope, send: Send) -> None:
        """Exchange the token in the URL for a cookie and redirect to the same URL without the token."""
        assert self.token is not None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        presented = query.pop("token", [""])[0]
        if scope["method"] not in READING or not _equal(presented, self.token):
            await answer(
                send, 401, "The viewer needs its token. Open the URL that `lobule view` has printed."
            )
            return
        location = "?" + urlencode(query, doseq=True) if query else "."
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        await answer(send, 303, "", [(b"location", location.encode()), (b"set-cookie", cookie.encode())])


@lru_cache(maxsize=64)
def host_name(host: bytes) -> str:
    """Return the host name of a Host header in lower case, without the port and brackets."""
    text = host.decode("latin-1").lower()
    match = re.fullmatch(r"\[([0-9a-f:.]+)\](?::[0-9]{1,5})?|([a-z0-9._-]+)(?::[0-9]{1,5})?", text)
    return "" if match is None else match[1] or match[2]


async def answer(
    send: Send, status: int, text: str, headers: list[tuple[bytes, bytes]] | None = None
) -> None:
    """Send a short plain-text answer."""
    body = text.encode()
    all_headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *SECURITY_HEADERS,
        *(headers or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


def _is_page(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Whether the request opens the viewer's start page, which a link on another page may do."""
    return (
        scope["path"] == "/" and headers.get(b"sec-fetch-mode") == b"navigate" and scope["method"] in READING
    )


def _equal(presented: str, secret: str) -> bool:
    return hmac.compare_digest(presented.encode("utf-8", "replace"), secret.encode())


def _is_small(length: bytes | None) -> bool:
    return length is not None and length.isdigit() and int(length[:12]) <= MAX_BODY


def _limited(receive: Receive) -> Receive:
    """Return `receive` with an error after `MAX_BODY` bytes."""
    total = 0

    async def receive_limited() -> MutableMapping[str, Any]:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        return {"type": "http.disconnect"} if total > MAX_BODY else message

    return receive_limited


def _secured(send: Send) -> Send:
    async def send_secured(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
        await send(message)

    return send_secured
