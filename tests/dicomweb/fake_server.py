"""A small DICOMweb server of files in memory, with faults on request."""

from __future__ import annotations

import email
import json
import random
import re
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from pydicom.encaps import generate_frames

SUMMARY = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "PatientID", "Modality", "StudyDate")


@dataclass
class Archive:
    """The objects of a server by UID, and what it does with requests."""

    objects: dict[str, pydicom.Dataset] = field(default_factory=dict)
    failing_share: float = 0.0
    faults: tuple[str, ...] = ("503", "429", "500", "short", "reset")
    dies_after: int | None = None
    """Number of requests after which every connection is closed."""
    token: str | None = None
    redirect: str | None = None
    answer: bytes | None = None
    """What every request is answered with."""
    links: dict[str, Any] = field(default_factory=dict)
    """Attributes that replace those of headers."""
    requests: list[str] = field(default_factory=list)
    url: str = ""
    _random: random.Random = field(default_factory=lambda: random.Random(4))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, paths: Sequence[Path]) -> None:
        for path in paths:
            self.add_object(pydicom.dcmread(path))

    def add_object(self, dataset: pydicom.Dataset) -> None:
        self.objects[str(dataset.SOPInstanceUID)] = dataset

    def fault(self, request: str) -> str | None:
        with self._lock:
            self.requests.append(request)
            if self.dies_after is not None and len(self.requests) > self.dies_after:
                return "reset"
            return self._random.choice(self.faults) if self._random.random() < self.failing_share else None

    def matching(self, **uids: str | None) -> list[pydicom.Dataset]:
        return [
            dataset for dataset in self.objects.values()
            if all(value is None or str(dataset[name].value) == value for name, value in uids.items())
        ]  # fmt: skip


def _frames(dataset: pydicom.Dataset) -> list[bytes]:
    count = int(dataset.get("NumberOfFrames", 1))
    if dataset.file_meta.TransferSyntaxUID.is_compressed:
        return list(generate_frames(dataset.PixelData, number_of_frames=count))
    size = dataset.Rows * dataset.Columns * dataset.get("SamplesPerPixel", 1) * dataset.BitsAllocated // 8
    return [dataset.PixelData[index * size : (index + 1) * size] for index in range(count)]


def _handler_of(archive: Archive) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None: ...

        def _send(self, body: bytes, kind: str, status: int = 200, short: bool = False) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if short else body)
            self.close_connection = self.close_connection or short

        def _is_refused(self) -> bool:
            if archive.redirect is not None:
                self.send_response(302)
                self.send_header("Location", archive.redirect)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return True
            if archive.token is not None and self.headers.get("Authorization") != archive.token:
                self._send(b"", "text/plain", 401)
                return True
            return False

        def do_GET(self) -> None:
            fault = archive.fault(f"GET {self.path}")
            if fault == "reset":
                self.close_connection = True
                return None
            if fault is not None and fault.isdigit():
                return self._send(b"", "text/plain", int(fault))
            if self._is_refused():
                return None
            address = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(address.query).items()}
            body, kind = self._content(address.path.removeprefix("/dicom-web"), query)
            return self._send(body, kind, 200 if kind else 404, short=fault == "short")

        def _content(self, path: str, query: dict[str, str]) -> tuple[bytes, str]:
            if archive.answer is not None:
                return archive.answer, "application/dicom+json"
            study, series, instance = (
                (re.search(rf"/{name}/([0-9.]+)", path) or [None, None])[1]
                for name in ("studies", "series", "instances")
            )
            data = archive.matching(StudyInstanceUID=study, SeriesInstanceUID=series, SOPInstanceUID=instance)
            if frames := re.search(r"/frames/([0-9,]+)$", path):
                return self._frames(data[0], [int(number) for number in frames[1].split(",")])
            if path.endswith("/metadata"):
                headers = [_header(dataset) | archive.links for dataset in data]
                return (json.dumps(headers).encode(), "application/dicom+json") if data else (b"", "")
            key = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID"}.get(
                path.rpartition("/")[2], "SOPInstanceUID"
            )
            return self._search(data, key, query), "application/dicom+json"

        def _search(self, data: list[pydicom.Dataset], key: str, query: dict[str, str]) -> bytes:
            rows = {}
            for dataset in data:
                wanted_modality = query.get("Modality", query.get("ModalitiesInStudy"))
                if wanted_modality in (None, dataset.Modality) and all(
                    query.get(name) in (None, str(dataset.get(name, "")))
                    for name in ("SOPInstanceUID", "PatientID")
                ):
                    summary = pydicom.Dataset()
                    for name in SUMMARY:
                        if name in dataset:
                            setattr(summary, name, dataset[name].value)
                    rows[str(dataset[key].value)] = summary.to_json_dict()
            first = int(query.get("offset", "0"))
            return json.dumps(list(rows.values())[first : first + int(query.get("limit", "9999"))]).encode()

        def _frames(self, dataset: pydicom.Dataset, numbers: list[int]) -> tuple[bytes, str]:
            frames, syntax = _frames(dataset), dataset.file_meta.TransferSyntaxUID
            head = f"Content-Type: application/octet-stream; transfer-syntax={syntax}".encode()
            body = b"".join(b"--edge\r\n" + head + b"\r\n\r\n" + frames[n - 1] + b"\r\n" for n in numbers)
            return body + b"--edge--\r\n", 'multipart/related; type="application/octet-stream"; boundary=edge'

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if archive.fault(f"POST {self.path}") is not None or self._is_refused():
                self.close_connection = True
                return
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            for part in email.message_from_bytes(head + body).get_payload():
                archive.add_object(pydicom.dcmread(BytesIO(part.get_payload(decode=True))))
            self._send(b"[]", "application/dicom+json")

    return Handler


def _header(dataset: pydicom.Dataset) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.Dataset()
        for element in dataset:
            if element.keyword != "PixelData":
                header.add(element)
        return dict(header.to_json_dict())


@contextmanager
def serve(archive: Archive) -> Iterator[Archive]:
    """Serve an archive on a free port of this machine; `archive.url` is the address."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that went away is not an error."""

    server = Server(("127.0.0.1", 0), _handler_of(archive))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    archive.url = f"http://127.0.0.1:{server.server_address[1]}/dicom-web"
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
