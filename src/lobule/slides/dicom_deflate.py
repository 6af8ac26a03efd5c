"""Inflate DICOM files whose whole data set is deflated, up to a size limit.

pydicom inflates such a file at once when it opens it: 8 MB can become more than 2 GiB. This module first
reads the file meta information, which is never compressed. It then inflates the data set up to a limit and
returns it as a file in Explicit VR Little Endian.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from typing import IO

from lobule.errors import TooLarge, damaged

DEFLATED = "1.2.840.10008.1.2.1.99"
"""Deflated Explicit VR Little Endian."""

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"

PREAMBLE_BYTES = 132
"""128 unused bytes followed by `DICM`."""

MAX_META_BYTES = 1 << 16
HEADER_BYTES = 4 << 20
"""The elements needed before the pixels must lie within this many bytes of the data set."""

CHUNK_BYTES = 1 << 20

_TRANSFER_SYNTAX = (0x0002, 0x0010)
_META_LENGTH = (0x0002, 0x0000)
_LONG_LENGTHS = frozenset(
    {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UT", b"UN", b"UC", b"UR", b"SV", b"UV"}
)


@dataclass(frozen=True)
class FileMeta:
    """The file meta information of a DICOM file."""

    transfer_syntax: str
    end: int
    """Bytes from the start of the file to its data set."""
    other_elements: bytes
    """All elements except the transfer syntax and the length of the group."""

    @property
    def is_deflated(self) -> bool:
        return self.transfer_syntax == DEFLATED


def read_file_meta(stream: IO[bytes]) -> FileMeta | None:
    """The file meta information, or None if the file has none. Leaves the stream at its start."""
    stream.seek(0)
    head = stream.read(PREAMBLE_BYTES + MAX_META_BYTES)
    stream.seek(0)
    if head[128:PREAMBLE_BYTES] != b"DICM":
        return None
    transfer_syntax, other_elements, at = "", [], PREAMBLE_BYTES
    while at + 8 <= len(head):
        group, element, kind, length = struct.unpack_from("<HH2sH", head, at)
        if group != 0x0002:
            break
        value_at = at + 8
        if kind in _LONG_LENGTHS:
            if at + 12 > len(head):
                break
            value_at, (length,) = at + 12, struct.unpack_from("<I", head, at + 8)
        following = value_at + length
        if (group, element) == _TRANSFER_SYNTAX:
            transfer_syntax = head[value_at:following].rstrip(b"\0 ").decode("ascii", "replace")
        elif (group, element) != _META_LENGTH:
            other_elements.append(head[at:following])
        at = following
    return FileMeta(transfer_syntax, at, b"".join(other_elements))


def inflate(
    stream: IO[bytes], meta: FileMeta, path: object, limit_bytes: int, *, stop_at_limit: bool = False
) -> IO[bytes]:
    """Return a deflated DICOM file as an uncompressed one, with at most `limit_bytes` of its data set.

    Args:
        stream: The deflated file.
        meta: Its file meta information.
        path: The file, for errors.
        limit_bytes: Largest size of the inflated data set in bytes.
        stop_at_limit: Stop at the limit instead of raising, which is enough to read a header.

    Raises:
        TooLarge: The data set exceeds the limit, and `stop_at_limit` is false.
        DamagedFile: The compressed bytes are damaged.
    """
    syntax = EXPLICIT_LITTLE_ENDIAN.encode()
    syntax += b"\0" * (len(syntax) % 2)
    out = io.BytesIO()
    out.write(bytes(128) + b"DICM" + meta.other_elements)
    out.write(struct.pack("<HH2sH", *_TRANSFER_SYNTAX, b"UI", len(syntax)) + syntax)
    stream.seek(meta.end)
    inflater, bytes_left = zlib.decompressobj(-zlib.MAX_WBITS), limit_bytes
    try:
        while not inflater.eof and bytes_left >= 0:
            data = inflater.unconsumed_tail or stream.read(CHUNK_BYTES)
            if not data and not inflater.unconsumed_tail:
                if stop_at_limit:
                    break
                raise zlib.error("the compressed data set is cut short")
            inflated = inflater.decompress(data, min(CHUNK_BYTES, bytes_left + 1))
            out.write(inflated[:bytes_left])
            bytes_left -= len(inflated)
    except zlib.error as error:
        raise damaged(path, "the deflated DICOM data set cannot be inflated", str(error)) from error
    if bytes_left < 0 and not stop_at_limit:
        raise TooLarge(
            "the deflated DICOM data set becomes larger than its image",
            subject=path,
            expected=f"at most {limit_bytes >> 20} MiB",
            remedy="Write it without deflation, for example with: dcmconv +te in.dcm out.dcm",
        )
    out.seek(0)
    return out


class FirstBytes(io.RawIOBase):
    """The first bytes of a stream as a separate stream, which limits how far a parser can read."""

    def __init__(self, stream: IO[bytes], limit_bytes: int) -> None:
        self._stream, self._limit = stream, limit_bytes
        self.name = stream.name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self._stream.read(max(0, min(len(view), self._limit - self._stream.tell())))
        view[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            offset, whence = self._limit + offset, io.SEEK_SET
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()
