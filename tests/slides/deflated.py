"""Deflated DICOM files: valid ones, and bombs that inflate to far more than their image."""

from __future__ import annotations

import zlib
from pathlib import Path

import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian

BOMB_BYTES = 3 << 30


def write_deflated(source: Path, target: Path) -> Path:
    """The same file in the deflated transfer syntax, by pydicom."""
    dataset = pydicom.dcmread(source)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    dataset.save_as(target, enforce_file_format=True)
    return target


def write_deflated_bomb(source: Path, target: Path, inflated_bytes: int = BOMB_BYTES) -> Path:
    """A deflated copy whose data set ends with `inflated_bytes` zeros; 3 GiB take 3 MB."""
    deflated = write_deflated(source, target).read_bytes()
    start = _data_set_start(source, target)
    inflated = zlib.decompress(deflated[start:], -zlib.MAX_WBITS)
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 24)
    with target.open("wb") as out:
        out.write(deflated[:start] + deflater.compress(inflated) + deflater.flush(zlib.Z_FULL_FLUSH))
        block = deflater.compress(zeros) + deflater.flush(zlib.Z_FULL_FLUSH)  # refers to nothing before it
        out.write(block * (inflated_bytes // len(zeros)))
        out.write(deflater.flush())
    return target


def _data_set_start(source: Path, target: Path) -> int:
    """Bytes before the data set: preamble, `DICM`, the group length, and as many bytes as it states."""
    meta = pydicom.filereader.read_file_meta_info(target)
    return 132 + 12 + int(meta.FileMetaInformationGroupLength)
