"""Over six hundred damaged files, made from small good ones, and a child process that must survive them.

    python -m tests.slides.damaged      makes them, opens and reads each, prints counts and the worst time

Whatever is wrong with a file, opening and reading it must end with success or with a typed error that names
the file, within `SECONDS`, below `BYTES` of memory, never with a crash. The files are the same on every run.
"""

from __future__ import annotations

import os
import random
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import tifffile
from PIL import Image
from pydicom.uid import generate_uid

from tests.slides.bombs import write_bombs
from tests.slides.damaged_structure import (
    HEIGHT,
    LONG,
    ROWS_PER_STRIP,
    STRUCTURE,
    TILE_COUNTS,
    TILE_OFFSETS,
    WIDTH,
    Tiff,
)
from tests.slides.sample_files import picture, pyramid, write_dicom, write_tiff
from tests.slides.trials import report, try_all

LEVELS = pyramid(picture(300, 200), 2)


# -- good files -------------------------------------------------------------------------------------------

APERIO = "Aperio Image Library v10\r\n300x200 (64x64) JPEG/RGB Q=92|AppMag = 20|MPP = 0.4990"


def good_svs(path: Path) -> None:
    with tifffile.TiffWriter(path) as out:
        common: dict[str, Any] = {"photometric": "ycbcr", "compression": "jpeg", "metadata": None}
        out.write(LEVELS[0], tile=(64, 64), description=APERIO, **common)
        out.write(LEVELS[1], rowsperstrip=16, description=APERIO, **common)
        out.write(LEVELS[1], tile=(64, 64), description=APERIO, **common)
        out.write(
            LEVELS[1][:60, :60], rowsperstrip=60, description="Aperio\r\nlabel 60x60", subfiletype=1, **common
        )


def good_ome(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as out:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        out.write(
            LEVELS[0], tile=(64, 64), photometric="rgb", subifds=1, metadata=metadata, compression="zlib"
        )
        out.write(LEVELS[1], tile=(64, 64), photometric="rgb", subfiletype=1, compression="zlib")


def good_image(path: Path) -> None:
    Image.fromarray(LEVELS[0]).save(path)


def good_mammogram(path: Path) -> None:
    write_dicom(path.parent, LEVELS[:1], coding="native", series=path.stem)
    written = path.with_name(f"{path.stem}_0.dcm")
    data = pydicom.dcmread(written)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    data.SOPInstanceUID = generate_uid(entropy_srcs=["mammogram"])
    data.save_as(path)
    written.unlink()


def good_dicom(coding: str, **options: Any) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_dicom(path.parent, LEVELS[:1], coding=coding, series=path.stem, **options)
        path.with_name(f"{path.stem}_0.dcm").rename(path)

    return make


GOOD: dict[str, Callable[[Path], Any]] = {
    "aperio.svs": good_svs,
    "deflate.tif": lambda path: write_tiff(path, LEVELS, compression="zlib", mpp=0.5),
    "plain.tif": lambda path: write_tiff(path, LEVELS),
    "strips.tif": lambda path: write_tiff(path, LEVELS[:1], tile=None, compression="lzw"),
    "big.tif": lambda path: tifffile.imwrite(
        path, LEVELS[0], tile=(64, 64), bigtiff=True, compression="jpeg"
    ),
    "jpeg2000.tif": lambda path: write_tiff(path, LEVELS, compression="jpeg2000"),
    "sub.ome.tif": good_ome,
    "jpeg.dcm": good_dicom("jpeg"),
    "jpeg2000.dcm": good_dicom("jpeg2000"),
    "sparse.dcm": good_dicom("native", sparse={(1, 1)}),
    "mammogram.dcm": good_mammogram,
    "image.png": good_image,
    "image.jpg": good_image,
    "image.bmp": good_image,
    "image.webp": good_image,
    "image.jp2": good_image,
    "image.tif": good_image,
}


# -- damage by bytes --------------------------------------------------------------------------------------


def cut_short(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    size = len(data)
    for keep in (1, 8, 140, size // 10, size // 3, size // 2, size * 9 // 10):
        yield f"cut-{keep}", data[:keep]
    yield "last-byte-cut", data[:-1]


def bits_flipped(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Eight variants: bits flipped anywhere, and near both ends where the structure is stored."""
    for seed in range(8):
        dice = random.Random(f"{name} {seed}")
        out = bytearray(data)
        for _ in range(24):
            reach = len(data) if seed % 2 else min(len(data), 700)
            at = dice.randrange(reach)
            at = at if dice.random() < 0.5 else len(data) - 1 - at
            out[at] ^= 1 << dice.randrange(8)
        yield f"flip-{seed}", bytes(out)


def overwritten(data: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    for position, fill in ((0.3, b"\0"), (0.6, b"\xff")):
        at = int(len(data) * position)
        yield f"fill-{fill.hex()}", data[:at] + fill * (len(data) // 8) + data[at + len(data) // 8 :]
    yield "wrong-magic", b"\x13\x37" + data[2:]


# -- bombs, and files that are not slides -----------------------------------------------------------------


def png_of(width: int, height: int, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def bombs(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for width, height in ((0, 5), (2**31 - 1, 1), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (9000, 9000)):
        yield f"says-{width}x{height}.png", png_of(width, height, zlib.compress(bytes(1000)))
    yield "expands.png", png_of(100, 100, zlib.compress(bytes(100_000_000), 1))
    jpeg = good["image.jpg"]
    frame = jpeg.index(b"\xff\xc0\x00\x11")
    for height, width in ((65_500, 65_500), (0, 300), (10_000, 10_000)):
        declared = struct.pack(">HH", height, width)
        yield f"says-{width}x{height}.jpg", jpeg[: frame + 5] + declared + jpeg[frame + 9 :]
    bmp = good["image.bmp"]
    for width, height in ((2**31 - 1, 2**31 - 1), (-5, 7), (20_000, 20_000)):
        yield f"says-{width}x{height}.bmp", bmp[:18] + struct.pack("<ii", width, height) + bmp[26:]
    tile = zlib.compress(bytes(200_000_000), 1)
    tiff = Tiff(good["deflate.tif"] + tile)
    tiff.fill_array(TILE_OFFSETS, len(good["deflate.tif"])).fill_array(TILE_COUNTS, len(tile))
    yield "expands.tif", tiff.done()
    strips = good["strips.tif"]
    absurd = Tiff(strips)
    for code in (WIDTH, HEIGHT, ROWS_PER_STRIP):
        absurd.set(code, kind=LONG, value=1_000_000)
    yield "strips-absurd.tif", absurd.done()
    jp2 = good["image.jp2"]
    siz = jp2.index(b"\xff\x4f\xff\x51")
    declared = struct.pack(">II", 2**31 - 1, 2**31 - 1)
    yield "says-much.jp2", jp2[: siz + 8] + declared + jp2[siz + 16 :]


WRONG_SUFFIXES = {
    "image.png": "svs",
    "aperio.svs": "png",
    "image.jpg": "tif",
    "deflate.tif": "dcm",
    "jpeg.dcm": "svs",
    "sub.ome.tif": "jpg",
    "image.webp": "bmp",
    "mammogram.dcm": "png",
}


def not_slides(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    dice = random.Random("rubbish")
    yield "empty.svs", b""
    yield "empty.dcm", b""
    yield "one-byte.tif", b"I"
    yield "text.tif", b"this is no slide\n" * 100
    yield "text.svs", b"neither is this\n"
    yield "html.ndpi", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"
    yield "archive.mrxs", b"PK\x03\x04" + dice.randbytes(4000)
    yield "lone.mrxs", good["image.jpg"]
    yield "noise.png", b"\x89PNG\r\n\x1a\n" + dice.randbytes(4000)
    yield "noise.jpg", b"\xff\xd8\xff\xe0" + dice.randbytes(4000)
    yield "noise.tif", b"II*\0\x08\0\0\0" + dice.randbytes(4000)
    yield "noise-big.tif", b"MM\0+\0\x08\0\0" + dice.randbytes(4000)
    yield "noise.dcm", bytes(128) + b"DICM" + dice.randbytes(4000)
    yield "noise.svs", dice.randbytes(4000)
    for kind, other in WRONG_SUFFIXES.items():
        yield f"really-{kind.replace('.', '-')}.{other}", good[kind]
    dicomdir = bytes(128) + b"DICM" + b"\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00"
    yield "DICOMDIR", dicomdir


def not_files(folder: Path) -> Iterator[Path]:
    yield folder / "missing.svs"
    yield folder / "missing-folder" / "a.svs"
    yield folder / ("long" * 200 + ".svs")
    (folder / "an-empty-folder").mkdir()
    yield folder / "an-empty-folder"
    (folder / "folder.svs").mkdir()
    (folder / "folder.svs" / "notes.txt").write_text("no DICOM here")
    yield folder / "folder.svs"
    os.mkfifo(folder / "pipe.svs")
    yield folder / "pipe.svs"
    (folder / "loop.svs").symlink_to(folder / "loop.svs")
    yield folder / "loop.svs"
    (folder / "dangling.svs").symlink_to(folder / "nowhere")
    yield folder / "dangling.svs"
    forbidden = folder / "forbidden.svs"
    forbidden.write_bytes(b"II*\0")
    forbidden.chmod(0)
    yield forbidden
    yield Path("/dev/null")


def make_damaged(folder: Path) -> list[Path]:
    """Write all damaged files, each into a separate folder, because DICOM examines neighbouring files."""
    good = {}
    for name, make in GOOD.items():
        (folder / "good").mkdir(parents=True, exist_ok=True)
        make(folder / "good" / name)
        good[name] = (folder / "good" / name).read_bytes()
    contents: dict[str, bytes] = {}
    for name, data in good.items():
        for damage in (cut_short, bits_flipped, overwritten, *filter(None, [STRUCTURE.get(name)])):
            for kind, damaged in damage(data, name):
                contents[f"{kind}/{name}"] = damaged
    contents |= {f"bomb/{name}": data for name, data in bombs(good)}
    contents |= {f"no-slide/{name}": data for name, data in not_slides(good)}
    paths = []
    for relative_path, data in contents.items():
        kind, _, name = relative_path.partition("/")
        path = folder / f"{kind}-{name.replace('.', '-')}" / name
        path.parent.mkdir()
        path.write_bytes(data)
        paths.append(path)
    return [*paths, *not_files(folder), *write_bombs(folder)]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(report(try_all(make_damaged(Path(folder)))))


if __name__ == "__main__":
    main()
