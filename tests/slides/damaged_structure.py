"""Damage to the structure of a file: the directories of a TIFF, and the elements of a DICOM file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

# -- damage to the directories of a TIFF ------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    at: int
    code: int
    kind: int
    count: int


class Tiff:
    """A classic little-endian TIFF as bytes, with the positions of its directories."""

    def __init__(self, data: bytes) -> None:
        assert data[:4] == b"II*\0"
        self.data = bytearray(data)
        self.starts: list[int] = []
        at = self.number(4)
        while at:
            self.starts.append(at)
            at = self.number(self.next_of(len(self.starts) - 1))

    def number(self, at: int) -> int:
        value: int = struct.unpack_from("<I", self.data, at)[0]
        return value

    def next_of(self, page: int) -> int:
        """Position of the address of the next directory."""
        start = self.starts[page]
        count: int = struct.unpack_from("<H", self.data, start)[0]
        return start + 2 + 12 * count

    def entry(self, code: int) -> Entry:
        for at in range(self.starts[0] + 2, self.next_of(0), 12):
            entry_code, kind, count = struct.unpack_from("<HHI", self.data, at)
            if entry_code == code:
                return Entry(at, entry_code, kind, count)
        raise KeyError(code)

    def set(
        self, code: int, *, kind: int | None = None, count: int | None = None, value: int | None = None
    ) -> Tiff:
        """Change an entry of the first directory."""
        entry = self.entry(code)
        kind, count = entry.kind if kind is None else kind, entry.count if count is None else count
        struct.pack_into("<HI", self.data, entry.at + 2, kind, count)
        if value is not None:
            struct.pack_into("<I", self.data, entry.at + 8, value)
        return self

    def link(self, page: int, target: int) -> Tiff:
        struct.pack_into("<I", self.data, self.next_of(page), target)
        return self

    def fill_array(self, code: int, value: int) -> Tiff:
        """Every number of a tag's array."""
        entry = self.entry(code)
        width, form = (2, "<H") if entry.kind == 3 else (4, "<I")
        start = entry.at + 8 if entry.count * width <= 4 else self.number(entry.at + 8)
        for index in range(entry.count):
            struct.pack_into(form, self.data, start + width * index, value % (1 << 8 * width))
        return self

    def done(self) -> bytes:
        return bytes(self.data)


WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, SAMPLES, PLANAR = (
    256,
    257,
    258,
    259,
    262,
    270,
    277,
    284,
)
TILE_WIDTH, TILE_LENGTH, TILE_OFFSETS, TILE_COUNTS, SUB_IFDS, JPEG_TABLES = 322, 323, 324, 325, 330, 347
ROWS_PER_STRIP = 278
LONG, ASCII, DOUBLE = 4, 2, 12


def tiff_structure(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    def fresh() -> Tiff:
        return Tiff(data)

    first = fresh().starts[0]
    yield "ifd-loop-to-itself", fresh().link(0, first).done()
    yield "ifd-loop-from-the-end", fresh().link(len(fresh().starts) - 1, first).done()
    yield "ifd-beyond-the-file", fresh().link(0, len(data) + 1000).done()
    yield "ifd-into-pixels", fresh().link(0, len(data) // 2).done()
    yield "first-ifd-at-0", data[:4] + bytes(4) + data[8:]
    yield "zero-length-tiles", fresh().fill_array(TILE_COUNTS, 0).done()
    yield "one-byte-tiles", fresh().fill_array(TILE_COUNTS, 1).done()
    yield "enormous-tiles", fresh().fill_array(TILE_COUNTS, 0xFFFFFFF0).done()
    yield "tiles-at-0", fresh().fill_array(TILE_OFFSETS, 0).done()
    yield "tiles-beyond-the-file", fresh().fill_array(TILE_OFFSETS, 0xFFFFFF00).done()
    yield "tiles-all-in-the-header", fresh().fill_array(TILE_OFFSETS, 8).done()
    for code in (TILE_OFFSETS, TILE_COUNTS):
        yield f"table-{code}-short", fresh().set(code, count=3).done()
        yield f"table-{code}-of-one", fresh().set(code, count=1).done()
        yield f"table-{code}-enormous", fresh().set(code, count=0x7FFFFFFF).done()
    for code in (WIDTH, HEIGHT):
        for value in (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 3_999_999):
            yield f"size-{code}-{value}", fresh().set(code, kind=LONG, count=1, value=value).done()
    both = fresh().set(WIDTH, kind=LONG, value=3_999_999).set(HEIGHT, kind=LONG, value=3_999_999)
    yield "size-absurd", both.done()
    for code in (TILE_WIDTH, TILE_LENGTH):
        for value in (0, 1, 65_520, 0xFFFFFFF0):
            yield f"tile-{code}-{value}", fresh().set(code, kind=LONG, count=1, value=value).done()
    both = fresh().set(TILE_WIDTH, kind=LONG, value=65_536).set(TILE_LENGTH, kind=LONG, value=65_536)
    yield "tile-absurd", both.done()
    for code in (WIDTH, TILE_WIDTH, TILE_OFFSETS, COMPRESSION, PHOTOMETRIC, SAMPLES):
        for kind in (ASCII, DOUBLE, 99):
            yield f"type-{code}-{kind}", fresh().set(code, kind=kind).done()
    for code, values in ((COMPRESSION, (0, 2, 6, 7, 5, 60_000)), (PHOTOMETRIC, (0, 3, 5, 6, 8, 999))):
        for value in values:
            yield f"tag-{code}-{value}", fresh().set(code, value=value).done()
    for value in (0, 1, 2, 4, 200, 65_535):
        yield f"samples-{value}", fresh().set(SAMPLES, value=value).done()
    yield "bits-of-one", fresh().set(BITS, count=1, value=64).done()
    yield "planes-apart", fresh().set(PLANAR, value=2).done()
    yield "half-the-entries", data[:first] + struct.pack("<H", 4) + data[first + 2 :]
    yield "enormous-entries", data[:first] + struct.pack("<H", 65_535) + data[first + 2 :]


def svs_structure(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    yield from tiff_structure(data, name)
    for declared in ("MPP = nan", "MPP = 0", "MPP = -1", "MPP = 1e9", "MPP = |||", "MPP ==\0"):
        yield (
            f"description-{declared[6:].encode().hex()}",
            data.replace(b"MPP = 0.4990", declared.ljust(12).encode()),
        )
    frame = data.index(b"\xff\xc0\x00\x11")
    for height, width in ((65_500, 65_500), (0, 64), (64, 128), (1, 1)):
        size = struct.pack(">HH", height, width)
        yield f"jpeg-says-{width}x{height}", data[: frame + 5] + size + data[frame + 9 :]


def ome_structure(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    tiff = Tiff(data)
    yield "sub-ifd-is-its-parent", Tiff(data).set(SUB_IFDS, value=tiff.starts[0]).done()
    yield "sub-ifd-beyond", Tiff(data).set(SUB_IFDS, value=len(data) + 5).done()
    yield "sub-ifd-at-0", Tiff(data).set(SUB_IFDS, value=0).done()
    yield "sub-ifds-many", Tiff(data).set(SUB_IFDS, count=50_000_000).done()
    sub = tiff.number(tiff.entry(SUB_IFDS).at + 8)
    for tag_type in (ASCII, DOUBLE):
        yield f"sub-ifd-type-{tag_type}", Tiff(data).set(SUB_IFDS, kind=tag_type).done()
    yield "sub-ifd-zeroed", data[:sub] + bytes(40) + data[sub + 40 :]
    entry = tiff.entry(DESCRIPTION)
    start = tiff.number(entry.at + 8)
    xml = data[start : start + entry.count]
    names = "abcdefghijklm"
    nested = "".join(f'<!ENTITY {b} "{6 * f"&{a};"}">' for a, b in pairwise(names))
    laughs = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY a "ha">{nested}]><OME>&m;</OME>'.encode()
    for kind, text in {
        "not-xml": b"<OME <<<>>> rubbish",
        "empty": b"<OME/>",
        "laughs": laughs,
        "cut": xml[: len(xml) // 2],
        "no-pixels": xml.replace(b"Pixels", b"Pickles"),
        "other-sizes": xml.replace(b'SizeX="300"', b'SizeX="-30"').replace(b'SizeY="200"', b'SizeY="9e9"'),
        "many-planes": xml.replace(b'SizeZ="1"', b'SizeZ="9"').replace(b'SizeT="1"', b'SizeT="x"'),
        "binary": bytes(range(128, 256)) * 4,
        "mpp": xml.replace(b'PhysicalSizeX="0.5"', b'PhysicalSizeX="NaN"'),
        "unit": xml.replace(b"PhysicalSizeX=", b"PhysicalSizeXUnit='parsec' PhysicalSizeX="),
    }.items():
        out = Tiff(data + text + b"\0")
        yield f"ome-{kind}", out.set(DESCRIPTION, count=len(text) + 1, value=len(data)).done()


# -- damage to DICOM --------------------------------------------------------------------------------------

ROWS, COLUMNS, FRAMES = b"\x28\x00\x10\x00US", b"\x28\x00\x11\x00US", b"\x28\x00\x08\x00IS"
MATRIX_COLUMNS, MATRIX_ROWS = b"\x48\x00\x06\x00UL", b"\x48\x00\x07\x00UL"


def dicom_structure(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    def value_at(tag: bytes) -> int:
        return data.index(tag) + 8

    def put(tag: bytes, value: bytes) -> bytes:
        at = value_at(tag)
        return data[:at] + value + data[at + len(value) :]

    for tag, label in ((ROWS, "rows"), (COLUMNS, "columns")):
        for value in (0, 1, 63, 65_535):
            yield f"{label}-{value}", put(tag, struct.pack("<H", value))
    for tag, label in ((MATRIX_COLUMNS, "matrix-columns"), (MATRIX_ROWS, "matrix-rows")):
        for value in (0, 1, 4_000_000, 4_294_967_295):
            yield f"{label}-{value}", put(tag, struct.pack("<I", value))
    absurd = put(ROWS, struct.pack("<H", 65_535))
    at = value_at(COLUMNS)
    yield "tile-absurd", absurd[:at] + struct.pack("<H", 65_535) + absurd[at + 2 :]
    at = value_at(FRAMES)
    for text in (b"0 ", b"-1", b"99", b"xx"):
        yield f"frames-{text.hex()}", data[:at] + text + data[at + 2 :]
    for label, tag in {
        "rows": ROWS,
        "matrix": MATRIX_ROWS,
        "samples": b"\x28\x00\x02\x00US",
        "photometric": b"\x28\x00\x04\x00CS",
        "spacing": b"\x28\x00\x30\x00",
    }.items():
        at = data.index(tag)
        yield f"without-{label}", data[: at + 2] + b"\xfe\x0f" + data[at + 4 :]
        yield f"type-of-{label}", data[: at + 4] + b"SQ" + data[at + 6 :]
    for spacing in (b"0\\0      ", b"-1\\-1    ", b"x\\y      ", b"1e99\\1   "):
        yield f"spacing-{spacing.strip().hex()}", data.replace(b"0.0005\\0.0005", spacing.ljust(13))
    syntax = data.index(b"1.2.840.10008.1.2")
    yield "syntax-unknown", data[:syntax] + b"1.2.3.4.5.6.7.8.9" + data[syntax + 17 :]
    pixels = data.rindex(b"\xe0\x7f\x10\x00")
    yield "no-pixels", data[:pixels]
    yield "pixels-length", data[: pixels + 8] + b"\xf0\xff\xff\x7f" + data[pixels + 12 :]
    yield "pixels-table", data[: pixels + 12] + b"\xee" * 24 + data[pixels + 36 :]
    frame = data.find(b"\xff\xc0\x00\x11")
    if frame > 0:
        for height, width in ((65_500, 65_500), (0, 64), (32, 64)):
            declared = struct.pack(">HH", height, width)
            yield f"jpeg-says-{width}x{height}", data[: frame + 5] + declared + data[frame + 9 :]
    siz = data.find(b"\xff\x4f\xff\x51")
    if siz > 0:
        yield "jpeg2000-says-much", data[: siz + 8] + struct.pack(">II", 1 << 31, 1 << 31) + data[siz + 16 :]


STRUCTURE: dict[str, Callable[[bytes, str], Iterator[tuple[str, bytes]]]] = {
    "aperio.svs": svs_structure,
    "deflate.tif": tiff_structure,
    "sub.ome.tif": ome_structure,
    "jpeg.dcm": dicom_structure,
    "jpeg2000.dcm": dicom_structure,
    "sparse.dcm": dicom_structure,
}
