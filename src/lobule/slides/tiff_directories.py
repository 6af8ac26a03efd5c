"""Limits on the directories of a TIFF, checked on the raw bytes before any directory is parsed.

A small file can declare a very large structure: hundreds of thousands of SubIFDs, many directories that share
one table of tiles, or a table in a range of a sparse file that takes no space on disk. Parsing such a file
would take minutes and gigabytes of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from struct import Struct
from typing import IO

from lobule.errors import DamagedFile, TooLarge

MAX_DIRECTORIES = 4096
"""Largest number of directories in the main chain. A slide has about ten, a focal stack hundreds."""

MAX_SUB_DIRECTORIES = 64
"""Largest number of SubIFDs in one directory. Each is a level, and no image can be halved 64 times."""

MAX_ENTRIES = 400_000
"""Largest number of entries (tags) in all directories. A directory of a slide has 15 to 60."""

MAX_TILES = 16_000_000
"""Largest number of tiles and strips in all directories: about ten times the number of tiles of 256 px in a
slide of 300,000 px a side."""

SUB_IFDS = 330
"""Tag whose values are the addresses of SubIFDs."""

TILE_TABLES = frozenset({273, 324})
"""Tags with one value per strip or tile: StripOffsets and TileOffsets."""

ADDRESS_FORMATS = {4: "I", 13: "I", 16: "Q", 18: "Q"}
"""`struct` formats of the TIFF types that hold the address of a directory: LONG, IFD, LONG8 and IFD8."""


@dataclass(frozen=True)
class _Layout:
    """Byte order and field sizes of one TIFF variant."""

    byte_order: str
    count: Struct
    """The number of entries of a directory."""
    entry: Struct
    """One entry: tag, type, number of values, and the values or their address."""
    value: Struct
    """The part of an entry that holds the values or their address."""
    link: Struct
    """The address of the next directory."""

    @classmethod
    def from_header(cls, header: bytes, path: str) -> _Layout:
        """Return the layout that the first bytes of a file state: BigTIFF (version 43) or classic TIFF."""
        order = "<" if header[:2] == b"II" else ">"
        if Struct(order + "H").unpack_from(header, 2)[0] == 43:
            formats = ("Q", "HHQQ", "Q", "Q")
        # Hamamatsu's files have 64-bit directory addresses in an otherwise classic TIFF.
        elif path.lower().endswith(".ndpi") and order == "<":
            formats = ("H", "HHII", "I", "Q")
        else:
            formats = ("H", "HHII", "I", "I")
        return cls(order, *(Struct(order + form) for form in formats))


@dataclass
class _Totals:
    """What all directories together declare, and the addresses of the directories."""

    entries: int = 0
    tiles: int = 0
    main_chain: set[int] = field(default_factory=set)
    sub_directories: set[int] = field(default_factory=set)


def check_limits(stream: IO[bytes], path: str) -> str | None:
    """Raise `TooLarge` if the directories declare too much, and check the main chain of directories.

    Returns:
        What is wrong with the first broken directory of the main chain: it lies outside the file, is cut
        off, occurs twice or exceeds the limit. None if the chain is intact.
    """
    stream.seek(0)
    header = stream.read(16).ljust(16, b"\0")
    layout = _Layout.from_header(header, path)
    file_size = stream.seek(0, 2)
    (offset,) = layout.link.unpack_from(header, 8 if layout.count.size == 8 else 4)
    totals = _Totals()
    while offset:
        problem = "occurs twice in the chain" if offset in totals.main_chain else ""
        if len(totals.main_chain) >= MAX_DIRECTORIES:
            problem = "exceeds the limit on the number of directories"
        next_offset = None if problem else _check_directory(stream, offset, file_size, layout, totals, path)
        if next_offset is None:
            problem = problem or "lies outside the file or is cut off"
            return f"directory {len(totals.main_chain)} at byte {offset} {problem}"
        totals.main_chain.add(offset)
        offset = next_offset
    for address in totals.sub_directories:
        _check_directory(stream, address, file_size, layout, totals, path, follow_sub_ifds=False)
    return None


def chain_error(path: str, problem: str) -> DamagedFile:
    """The error for a file whose chain of directories is broken; `problem` comes from `check_limits`."""
    return DamagedFile(
        "the chain of TIFF directories is broken",
        subject=path,
        expected=f"a chain of at most {MAX_DIRECTORIES} directories inside the file",
        actual=problem,
        remedy="Copy the file again from its source",
    )


def _check_directory(
    stream: IO[bytes],
    offset: int,
    file_size: int,
    layout: _Layout,
    totals: _Totals,
    path: str,
    follow_sub_ifds: bool = True,
) -> int | None:
    """Add the entries, tiles and SubIFDs of one directory to the totals, and check the limits.

    Returns:
        The address of the next directory, 0 after the last one, or None if this directory is cut off.
    """
    if offset + layout.count.size > file_size:
        return None
    stream.seek(offset)
    (entry_count,) = layout.count.unpack(stream.read(layout.count.size))
    first_entry, entries_size = offset + layout.count.size, entry_count * layout.entry.size
    if first_entry + entries_size + layout.link.size > file_size:
        return None
    totals.entries += entry_count
    _check_limit(totals.entries, MAX_ENTRIES, "directory entries", path)
    entry_bytes = stream.read(entries_size + layout.link.size)
    for position in range(0, entries_size, layout.entry.size):
        tag, field_type, value_count, _ = layout.entry.unpack_from(entry_bytes, position)
        if tag in TILE_TABLES:
            totals.tiles += value_count
            _check_limit(totals.tiles, MAX_TILES, "tiles", path)
        elif tag == SUB_IFDS:
            _check_limit(value_count, MAX_SUB_DIRECTORIES, "SubIFDs in one directory", path)
            if follow_sub_ifds:
                totals.sub_directories.update(
                    _addresses(stream, first_entry + position, field_type, value_count, file_size, layout)
                )
                _check_limit(len(totals.sub_directories), MAX_DIRECTORIES, "SubIFDs", path)
    return int(layout.link.unpack_from(entry_bytes, entries_size)[0])


def _addresses(
    stream: IO[bytes], entry_offset: int, field_type: int, address_count: int, file_size: int, layout: _Layout
) -> Iterator[int]:
    """The addresses in a SubIFDs entry; empty if they lie outside the file or have an unexpected type.

    An entry contains its values if they fit into it; otherwise it contains their address.
    """
    address_format = ADDRESS_FORMATS.get(field_type)
    if address_format is None:
        return
    addresses = Struct(f"{layout.byte_order}{address_count}{address_format}")
    offset = entry_offset + layout.entry.size - layout.value.size
    if addresses.size > layout.value.size:
        stream.seek(offset)
        (offset,) = layout.value.unpack(stream.read(layout.value.size))
    if offset + addresses.size > file_size:
        return
    stream.seek(offset)
    yield from addresses.unpack(stream.read(addresses.size))


def _check_limit(count: int, limit: int, noun: str, path: str) -> None:
    if count > limit:
        raise TooLarge(
            f"the TIFF declares {count:,} {noun}",
            subject=path,
            expected=f"at most {limit:,}",
            remedy="Copy the file again; if it really holds that many, convert it to a tiled, "
            "pyramidal TIFF: vips tiffsave --tile --pyramid",
        )
