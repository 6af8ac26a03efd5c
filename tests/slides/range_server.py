"""A small HTTP server of objects with ranges, versions and faults on request. It also answers like S3."""

from __future__ import annotations

import hashlib
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape, unescape


@dataclass
class Objects:
    """The objects of a server by path, and what it does with requests."""

    data: dict[str, bytes] = field(default_factory=dict)
    failing_share: float = 0.0
    """Share of requests that are answered with an error."""
    faults: tuple[str, ...] = ("503", "429", "500", "short", "reset")
    pause_s: float = 0.0
    refused: set[str] = field(default_factory=set)
    """Paths for which the credentials are refused."""
    weak_versions: bool = False
    """Whether versions are weak, which a server never matches with those of requests."""
    ignores_ranges: bool = False
    requests: list[tuple[str, str, tuple[int, int] | None]] = field(default_factory=list)
    """Method, path and range of each request that was answered with data."""
    puts: list[str] = field(default_factory=list)
    """Path of each request that writes an object, also of refused ones."""
    before_put: Callable[[str, int], None] | None = None
    """Called with the path and the number of each request that writes an object, before it is answered."""
    most_at_once: int = 0
    url: str = ""
    _random: random.Random = field(default_factory=lambda: random.Random(3))
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _at_once: int = 0

    @property
    def bytes_sent(self) -> int:
        return sum(end - start for method, _, span in self.requests if method == "GET" and span
                   for start, end in [span])  # fmt: skip

    def fault(self) -> str | None:
        with self._lock:
            return self._random.choice(self.faults) if self._random.random() < self.failing_share else None


def _version(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


def _handler_of(objects: Objects) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            with objects._lock:
                objects._at_once += 1
                objects.most_at_once = max(objects.most_at_once, objects._at_once)
            try:
                time.sleep(objects.pause_s)
                self._answer(with_body=True)
            finally:
                with objects._lock:
                    objects._at_once -= 1

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            path = unquote(urlsplit(self.path).path)
            with objects._lock:
                objects.puts.append(path)
                number = len(objects.puts)
            if objects.before_put is not None:
                objects.before_put(path, number)
            fault = objects.fault()
            if fault is not None:
                return self._refuse(int(fault) if fault.isdecimal() else 503)
            if path in objects.refused:
                return self._refuse(403)
            with objects._lock:
                current = objects.data.get(path)
                is_new = self.headers.get("If-None-Match") == "*"
                match = self.headers.get("If-Match")
                if (is_new and current is not None) or (match and match != _version(current or b"")):
                    return self._refuse(412)
                objects.data[path] = data
            self.send_response(200)
            self.send_header("ETag", _version(data))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None

        def do_POST(self) -> None:
            """Delete several objects of a bucket, as S3 does."""
            names = re.findall(
                r"<Key>(.*?)</Key>", self.rfile.read(int(self.headers["Content-Length"])).decode()
            )
            with objects._lock:
                for name in map(unescape, names):
                    objects.data.pop(f"{urlsplit(self.path).path}/{name}", None)
            items = "".join(f"<Deleted><Key>{name}</Key></Deleted>" for name in names)
            self._send_text(f"<DeleteResult>{items}</DeleteResult>")

        def _send_text(self, text: str) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def _refuse(self, status: int) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _list(self, bucket: str, prefix: str) -> None:
            """Answer a request of S3 for the names that start with a prefix."""
            with objects._lock:
                stored = dict(objects.data)
            names = {path.removeprefix(f"{bucket}/"): data for path, data in stored.items()}
            items = "".join(
                f"<Contents><Key>{escape(name)}</Key><Size>{len(data)}</Size>"
                f"<ETag>{escape(_version(data))}</ETag>"
                "<LastModified>2026-11-28T10:00:00.000Z</LastModified></Contents>"
                for name, data in names.items() if name.startswith(prefix)
            )  # fmt: skip
            self._send_text(f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>")

        def _answer(self, with_body: bool) -> None:
            address = urlsplit(self.path)
            path = unquote(address.path)
            if "list-type" in address.query:
                return self._list(path, dict(parse_qsl(address.query)).get("prefix", ""))
            fault = objects.fault()
            if fault in ("503", "429", "500"):
                return self._refuse(int(fault))
            if fault == "reset":
                self.close_connection = True
                return None
            if path in objects.refused:
                return self._refuse(403)
            if path not in objects.data:
                return self._refuse(404)
            data = objects.data[path]
            version = f"{'W/' if objects.weak_versions else ''}{_version(data)}"
            match = self.headers.get("If-Match", version)
            if match != version or (objects.weak_versions and "If-Match" in self.headers):
                return self._refuse(412)
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if objects.ignores_ranges:
                span = None
            start, end = (int(span[1]), min(int(span[2]) + 1, len(data))) if span else (0, len(data))
            self.send_response(206 if span else 200)
            self.send_header("ETag", version)
            self.send_header("Last-Modified", "Sat, 28 Nov 2026 10:00:00 GMT")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(end - start))
            if span:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
            self.end_headers()
            if not with_body:
                return None
            if fault == "short":
                self.wfile.write(data[start : start + (end - start) // 2])
                self.close_connection = True
                return None
            with objects._lock:  # Before the body: a reader that has all of it may look at the list at once.
                objects.requests.append(("GET", path, (start, end)))
            self.wfile.write(data[start:end])
            return None

    return Handler


@contextmanager
def serve(objects: Objects) -> Iterator[Objects]:
    """Serve objects on a free port of this machine; `objects.url` is the address."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is not an error."""

    server = Server(("127.0.0.1", 0), _handler_of(objects))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    objects.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield objects
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
