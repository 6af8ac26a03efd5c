"""Requests to one DICOMweb server, and the answers: JSON, headers and frames."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from lobule.errors import MissingExtra, NotReadable, UsageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

TOKEN_VARIABLE = "LOBULE_DICOMWEB_TOKEN"
ATTEMPTS = 4
"""Attempts after which a request is given up."""
FIRST_PAUSE_S = 0.2
TIMEOUT_S = (10.0, 60.0)
"""Seconds to connect, and between two pieces of an answer."""
CONNECTIONS = 32
LARGEST_ANSWER = 1 << 30
JSON = "application/dicom+json"
FRAMES = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
"""Asks for frames in the compression in which they are stored."""
PIXEL_DATA = "7FE00010"
SYNTAX_OF_MEDIA = {
    "application/octet-stream": "1.2.840.10008.1.2.1",
    "image/jpeg": "1.2.840.10008.1.2.4.50",
    "image/jp2": "1.2.840.10008.1.2.4.90",
    "image/jls": "1.2.840.10008.1.2.4.80",
    "image/x-jls": "1.2.840.10008.1.2.4.80",
}
"""Transfer syntaxes that the standard assumes for frames whose answer does not state one."""


@dataclass(frozen=True)
class Answer:
    """The body of an answer and the type of its content."""

    status: int
    content: bytes
    content_type: str


class _TryAgain(Exception):
    """An error that may be gone at the next attempt."""


class Server:
    """One DICOMweb server. Threads may send requests at the same time."""

    def __init__(self, root: str) -> None:
        if find_spec("requests") is None:
            raise MissingExtra("dicomweb", "Reading from DICOMweb servers")
        import requests

        address = urlsplit(root)
        if address.scheme.lower() not in ("http", "https"):
            raise UsageError(
                "this is not the address of a DICOMweb server",
                subject=root,
                expected="https://HOST/dicom-web",
                remedy="Begin the address with https:// or http://",
            )
        if "@" in address.netloc:
            raise UsageError(
                "the URL of a DICOMweb server must not contain a password",
                subject=root.rpartition("@")[2],
                remedy="Put the user and the password into ~/.netrc",
            )
        self.root = root.rstrip("/")
        self._session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_connections=1, pool_maxsize=CONNECTIONS)
        self._session.mount(self.root, adapter)

    def request(
        self,
        method: str,
        path: str,
        *,
        accept: str,
        params: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        content_type: str | None = None,
        accepted: Sequence[int] = (200, 204),
    ) -> Answer:
        """Send a request until it succeeds.

        Args:
            method: GET or POST.
            path: The path below the root, or a complete URL that begins with the root.
            accept: The type of the answer.
            params: Parameters of the query.
            body: Content to send.
            content_type: The type of `body`.
            accepted: Status codes that are not errors.

        Raises:
            NotReadable: The server cannot be reached, refuses, or fails at every attempt.
        """
        url = path if path.startswith(f"{self.root}/") else f"{self.root}{path}"
        headers = {"Accept": accept, **({"Content-Type": content_type} if content_type else {})}
        for number in range(1, ATTEMPTS + 1):
            try:
                return self._attempt(method, url, headers, params, body, accepted)
            except _TryAgain as error:
                problem = error
            if number < ATTEMPTS:
                time.sleep(FIRST_PAUSE_S * 2 ** (number - 1))
        raise NotReadable(
            f"{ATTEMPTS} requests to the DICOMweb server failed: {problem}",
            subject=url,
            remedy="Check the server and the network, then try again",
        )

    def _attempt(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        params: Sequence[tuple[str, str]],
        body: bytes | None,
        accepted: Sequence[int],
    ) -> Answer:
        import requests

        try:
            with self._session.request(
                method, url, params=list(params), data=body, headers={**headers, **self._token()},
                timeout=TIMEOUT_S, stream=True, allow_redirects=False,
            ) as response:  # fmt: skip
                if response.status_code not in accepted:
                    raise self._error(url, response.status_code, response.headers, response.reason)
                content = _limited(response.iter_content(1 << 20), url)
                return Answer(response.status_code, content, response.headers.get("Content-Type", ""))
        except requests.exceptions.SSLError as error:
            raise NotReadable(f"the certificate of the server is not valid: {error}", subject=url) from error
        except (
            requests.ConnectionError,
            requests.Timeout,
            requests.exceptions.ChunkedEncodingError,
        ) as error:
            raise _TryAgain(_short(error)) from error
        except requests.RequestException as error:
            raise NotReadable(f"the request cannot be sent: {_short(error)}", subject=url) from error

    def _token(self) -> dict[str, str]:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return {}
        address = urlsplit(self.root)
        if address.scheme.lower() != "https" and address.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise UsageError(
                f"{TOKEN_VARIABLE} is not sent without encryption",
                subject=self.root,
                expected="an address that begins with https://",
            )
        return {"Authorization": f"Bearer {token}"}

    def _error(self, url: str, status: int, headers: Mapping[str, str], reason: str) -> Exception:
        if status in (401, 403):
            return NotReadable(
                f"the DICOMweb server refused access (status {status})",
                subject=url,
                remedy=f"Put the user and the password into ~/.netrc, or set {TOKEN_VARIABLE}",
            )
        if status == 404:
            return NotReadable("the DICOMweb server has no such object", subject=url, remedy="Check the URL")
        if 300 <= status < 400:
            return NotReadable(
                "the DICOMweb server redirects to another address, which is not contacted",
                subject=url,
                actual=headers.get("Location", ""),
                remedy="Use that address, if you trust it",
            )
        if status in (408, 429) or status >= 500:
            return _TryAgain(f"status {status} {reason}")
        return NotReadable(f"the DICOMweb server refused the request (status {status} {reason})", subject=url)

    def json(
        self, path: str, params: Sequence[tuple[str, str]] = (), accepted: Sequence[int] = (200, 204)
    ) -> list[dict[str, Any]]:
        """Return the data sets of an answer in JSON, which may be none.

        Raises:
            NotReadable: The request failed, or the answer is not a list of data sets.
        """
        answer = self.request("GET", path, accept=JSON, params=params, accepted=accepted)
        if answer.status in (204, 404) or not answer.content:
            return []
        try:
            values = json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            raise self._unexpected(path, f"not JSON: {error}") from error
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            raise self._unexpected(path, type(values).__name__)
        return values

    def _unexpected(self, path: str, actual: str) -> NotReadable:
        return NotReadable(
            "the answer is not that of a DICOMweb server",
            subject=f"{self.root}{path}",
            expected="a list of data sets in JSON",
            actual=actual,
            remedy="Check the address; that of Orthanc ends with /dicom-web",
        )

    # -- data -----------------------------------------------------------------------------------------------

    def metadata(self, path: str) -> list[Dataset]:
        """Return the headers of a series or an instance, without pixels."""
        url = f"{self.root}{path}/metadata"
        return [self._dataset(values, url) for values in self.json(f"{path}/metadata")]

    def _dataset(self, values: dict[str, Any], url: str) -> Dataset:
        import pydicom
        from pydicom.dataset import FileMetaDataset

        def bulk_data(tag: str, vr: str, link: str) -> bytes:
            target = urljoin(url, link)
            if not target.startswith(f"{self.root}/"):
                raise NotReadable(
                    "the header refers to data on another server, which is not contacted",
                    subject=url,
                    actual=target,
                )
            answer = self.request("GET", target, accept='multipart/related; type="application/octet-stream"')
            return next(iter(_bodies(answer)))[1]

        values = {tag: value for tag, value in values.items() if tag != PIXEL_DATA}
        try:
            dataset: Dataset = pydicom.Dataset.from_json(values, bulk_data)
        except NotReadable:
            raise
        except Exception as error:  # The parser raises any exception on values that are not valid.
            raise NotReadable(f"the header cannot be read: {error}", subject=url) from error
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = SYNTAX_OF_MEDIA["application/octet-stream"]
        return dataset

    def frames(self, instance_path: str, first: int, last: int) -> tuple[str, list[bytes]]:
        """Return the transfer syntax and the frames from `first` to `last`, counted from 1.

        Raises:
            NotReadable: The request failed, or the answer has another number of frames.
        """
        numbers = ",".join(map(str, range(first, last + 1)))
        answer = self.request("GET", f"{instance_path}/frames/{numbers}", accept=FRAMES)
        bodies = list(_bodies(answer))
        if len(bodies) != last - first + 1:
            raise NotReadable(
                "the answer has another number of frames than the request",
                subject=f"{self.root}{instance_path}/frames/{numbers}",
                expected=str(last - first + 1),
                actual=str(len(bodies)),
            )
        return _syntax(answer.content_type, bodies[0][0]), [content for _, content in bodies]


def server_of(root: str) -> Server:
    """Return the server with an address, whose connections are used again."""
    return _server(root, os.getpid())


@lru_cache(maxsize=32)
def _server(root: str, process: int) -> Server:
    return Server(root)


def _limited(pieces: Iterator[bytes], url: str) -> bytes:
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > LARGEST_ANSWER:
            raise NotReadable(
                "the answer is too large", subject=url, expected=f"at most {LARGEST_ANSWER:,} bytes"
            )
    return bytes(content)


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _bodies(answer: Answer) -> Iterator[tuple[str, bytes]]:
    """Yield the type and the content of each body of a multipart answer, or those of another answer."""
    boundary = re.search(r'boundary="?([^";]+)"?', answer.content_type)
    if "multipart" not in answer.content_type.lower() or boundary is None:
        yield answer.content_type, answer.content
        return
    for piece in (b"\r\n" + answer.content).split(b"\r\n--" + boundary[1].strip().encode())[1:]:
        if piece.startswith(b"--"):
            return
        header, _, content = piece.partition(b"\r\n\r\n")
        types = re.search(rb"content-type:\s*([^\r\n]+)", header, re.IGNORECASE)
        yield types[1].decode("latin-1") if types else "", content


def _syntax(*content_types: str) -> str:
    """The transfer syntax of frames by the types of the parts or of the answer."""
    for content_type in reversed(content_types):
        if stated := re.search(r"transfer-syntax=\"?([0-9.]+)", content_type):
            return stated[1]
    for content_type in reversed(content_types):
        for media, syntax in SYNTAX_OF_MEDIA.items():
            if media in content_type.lower():
                return syntax
    return SYNTAX_OF_MEDIA["application/octet-stream"]
