"""Small files that declare or inflate to huge sizes, written byte by byte."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

from tests.slides.deflated import write_deflated_bomb
from tests.slides.sample_files import picture, write_dicom

LONG, SHORT = 4, 3


def _directory(entries: Sequence[tuple[int, int, int, int]]) -> bytes:
    packed = b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries))
    return struct.pack("<H", len(entries)) + packed + bytes(4)


def _grey_page(side: int, tile: int, tiles: int, table_at: int) -> list[tuple[int, int, int, int]]:
    return [
        (256, LONG, 1, side), (257, LONG, 1, side), (258, SHORT, 1, 8), (259, SHORT, 1, 1),
        (262, SHORT, 1, 1), (277, SHORT, 1, 1), (322, LONG, 1, tile), (323, LONG, 1, tile),
        (324, LONG, tiles, table_at), (325, LONG, tiles, table_at),
    ]  # fmt: skip


def write_sparse(path: Path, side: int, tile: int) -> Path:
    """A TIFF of `side` pixels a side that stores none of its tiles."""
    tiles = (-(-side // tile)) ** 2
    table_at = 8 + len(_directory(_grey_page(side, tile, tiles, 0)))
    with path.open("wb") as out:
        out.write(b"II*\0" + struct.pack("<I", 8) + _directory(_grey_page(side, tile, tiles, table_at)))
        out.truncate(table_at + 4 * tiles)  # zeros, which a file system may store as a hole
    return path


def write_many_sub_ifds(path: Path, count: int) -> Path:
    """A TIFF of one tile whose SubIFDs entry lists one directory `count` times."""
    page = _grey_page(64, 64, 1, 0)
    table_at = 8 + len(_directory([*page, (330, LONG, count, 0)]))
    first = _directory([*page, (330, LONG, count, table_at)])
    sub_at = table_at + 4 * count
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", sub_at) * count + _directory(page)
    )
    return path


def write_nested_ome(path: Path, depth: int) -> Path:
    """An OME-TIFF with deeply nested Image elements."""
    pixels = '<Image ID="a"><Pixels SizeX="64" SizeY="64" SizeC="3" Type="uint8" DimensionOrder="XYCZT">'
    description = f"<OME>{pixels * depth}{'</Pixels></Image>' * depth}</OME>"
    tifffile.imwrite(path, np.full((64, 64, 3), 200, np.uint8), photometric="rgb", tile=(64, 64),
                     description=description, metadata=None)  # fmt: skip
    return path


def write_bombs(folder: Path) -> list[Path]:
    """Write each file into a separate folder. The deflated DICOM has a valid slide in the same folder."""
    names = ("sparse", "sparse-larger", "sparse-tables", "sub-ifds", "ome", "dicom")
    folders = {name: folder / f"bomb-{name}" for name in names}
    for path in folders.values():
        path.mkdir(parents=True)
    (sound,) = write_dicom(folders["dicom"], [picture(128, 96)], coding="native")
    return [
        write_sparse(folders["sparse"] / "a.tif", 300_000, 256),
        write_sparse(folders["sparse-larger"] / "a.tif", 3_000_000, 8192),
        write_sparse(folders["sparse-tables"] / "a.tif", 300_000, 16),
        write_many_sub_ifds(folders["sub-ifds"] / "a.tif", 300_000),
        write_nested_ome(folders["ome"] / "a.ome.tif", 30_000),
        write_deflated_bomb(sound, folders["dicom"] / "bomb.dcm"),
        sound,
    ]
