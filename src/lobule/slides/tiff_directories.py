"""Limits on the directories of a TIFF, checked on the raw bytes before any directory is parsed.

A small file can declare a very large structure: hundreds of thousands of SubIFDs, directories that share one
table of tiles, or a table inside a hole of a sparse file. Parsing it would take minutes and gigabytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from lobule.errors import DamagedFile, TooLarge

MAX_DIRECTORIES = 4096
"""Limit of directories in the main chain: a slide has about ten, a stack of focal planes some hundreds."""

MAX_SUB_DIRECTORIES = 64
"""Limit of SubIFDs in one directory: each contains a level, and no image can be halved 64 times."""

MAX_ENTRIES = 400_000
"""Limit of entries over all directories; a directory of a slide has 15 to 60."""

MAX_TILES = 16_000_000
"""Limit of tiles over all directories: ten times a slide of 300,000 px a side in tiles of 256 px."""

SUB_IFDS = 330
TILE_TABLES = frozenset({273, 324})
"""StripOffsets and TileOffsets."""

OFFSET_FORMATS = {4: "I", 13: "I", 16: "Q", 18: "Q"}
"""TIFF types of the address of a directory: LONG, IFD, LONG8 and IFD8."""


@dataclass(frozen=True)
class _Layout:
    """Byte order and field sizes of one TIFF variant."""

    order: str
    count_format: str
    entry_format: str
    link_format: str
    """Format of the address of the next directory."""

    @classmethod
    def of(cls, header: bytes, path: str) -> _Layout:
        order = "<" if header[:2] == b"II" else ">"
        if struct.unpack(order + "H", header[2:4])[0] == 43:
            return cls(order, "Q", "HHQQ", "Q")
        # Hamamatsu's files have 64-bit directory addresses in an otherwise classic TIFF.
        link = "Q" if path.lower().endswith(".ndpi") and order == "<" else "I"
        return cls(order, "H", "HHII", link)


@dataclass
class _Totals:
    entries: int = 0
    tiles: int = 0
    chain: set[int] = field(default_factory=set)
    sub_directories: set[int] = field(default_factory=set)


def check_limits(stream: IO[bytes], path: str) -> str | None:
    """Raise `TooLarge` if the directories declare too much, and describe a broken chain of directories.

    Returns:
        A description of the first directory of the main chain that lies outside the file, is cut off or
        occurs twice; None if the chain is intact.
    """
    stream.seek(0)
    header = stream.read(16).ljust(16, b"\0")
    layout = _Layout.of(header, path)
    end = stream.seek(0, 2)
    start = 8 if layout.count_format == "Q" else 4
    (at,) = struct.unpack_from(layout.order + layout.link_format, header, start)
    totals = _Totals()
    while at:
        broken = "occurs twice" if at in totals.chain else ""
        if len(totals.chain) >= MAX_DIRECTORIES:
            broken = "is one more than the limit"
        following = None if broken else _check_directory(stream, at, end, layout, totals, path)
        if following is None:
            broken = broken or "lies outside the file or is cut off"
            return f"directory {len(totals.chain)} at byte {at} {broken}"
        totals.chain.add(at)
        at = following
    for address in totals.sub_directories:
        _check_directory(stream, address, end, layout, totals, path, follow_sub_ifds=False)
    return None


def chain_error(path: str, problem: str) -> DamagedFile:
    """The error for a file whose chain of directories is broken."""
    return DamagedFile(
        "the chain of TIFF directories is broken",
        subject=path,
        expected=f"a chain of at most {MAX_DIRECTORIES} directories inside the file",
        actual=problem,
        remedy="Copy the file again from its source",
    )


def _check_directory(
    stream: IO[bytes],
    at: int,
    end: int,
    layout: _Layout,
    totals: _Totals,
    path: str,
    follow_sub_ifds: bool = True,
) -> int | None:
    """Count the contents of one directory. Returns the address of the next one, or None if it is cut off."""
    count_size, link_size = struct.calcsize(layout.count_format), struct.calcsize(layout.link_format)
    entry_size = struct.calcsize(layout.order + layout.entry_format)
    if at + count_size > end:
        return None
    stream.seek(at)
    (count,) = struct.unpack(layout.order + layout.count_format, stream.read(count_size))
    if at + count_size + count * entry_size + link_size > end:
        return None
    totals.entries += count
    _check(totals.entries, MAX_ENTRIES, "directory entries", path)
    body = stream.read(count * entry_size + link_size)
    for position in range(0, count * entry_size, entry_size):
        code, kind, values, _ = struct.unpack_from(layout.order + layout.entry_format, body, position)
        if code in TILE_TABLES:
            totals.tiles += values
            _check(totals.tiles, MAX_TILES, "tiles", path)
        elif code == SUB_IFDS:
            _check(values, MAX_SUB_DIRECTORIES, "SubIFDs in one directory", path)
            if follow_sub_ifds:
                field_at = at + count_size + position
                totals.sub_directories.update(_addresses(stream, field_at, kind, values, end, layout))
                _check(len(totals.sub_directories), MAX_DIRECTORIES, "SubIFDs", path)
    (following,) = struct.unpack_from(layout.order + layout.link_format, body, count * entry_size)
    return int(following)


def _addresses(
    stream: IO[bytes], field_at: int, kind: int, count: int, end: int, layout: _Layout
) -> Iterator[int]:
    """The addresses in a SubIFDs entry; empty if they lie outside the file."""
    form = OFFSET_FORMATS.get(kind)
    if form is None:
        return
    size, room = count * struct.calcsize(form), struct.calcsize(layout.entry_format[-1])
    at = field_at + struct.calcsize(layout.order + layout.entry_format) - room
    if size > room:
        stream.seek(at)
        (at,) = struct.unpack(layout.order + layout.entry_format[-1], stream.read(room))
    if at + size > end:
        return
    stream.seek(at)
    yield from struct.unpack(f"{layout.order}{count}{form}", stream.read(size))


def _check(count: int, limit: int, noun: str, path: str) -> None:
    if count > limit:
        raise TooLarge(
            f"the TIFF declares {count:,} {noun}",
            subject=path,
            expected=f"at most {limit:,}",
            remedy="Copy the file again; if it really holds that many, convert it to a tiled, "
            "pyramidal TIFF: vips tiffsave --tile --pyramid",
        )
