"""Deflated mammograms are read like others, and a bomb is refused before it is inflated."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lobule.errors import DamagedFile, TooLarge
from lobule.mammograms.dicom import examine_dicom, read_dicom
from lobule.mammograms.dicom_header import read_dicom_header
from tests.mammograms.sample_files import write_view
from tests.slides.deflated import write_deflated, write_deflated_bomb

pytest.importorskip("pydicom")


def test_deflated_mammogram_has_the_same_pixels(tmp_path: Path) -> None:
    plain = write_view(tmp_path / "a.dcm")
    deflated = write_deflated(plain, tmp_path / "b.dcm")
    assert np.array_equal(read_dicom(deflated).pixels, read_dicom(plain).pixels)
    assert examine_dicom(deflated).view == "L-CC"
    header = read_dicom_header(deflated)
    assert header is not None and header.is_mammogram


def test_deflated_bomb_is_refused_within_the_size_of_its_image(tmp_path: Path) -> None:
    bomb = write_deflated_bomb(write_view(tmp_path / "a.dcm"), tmp_path / "bomb.dcm", 1 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match=r"bomb\.dcm.*larger than its image"):
            read_dicom(bomb)
        assert examine_dicom(bomb).view == "L-CC"
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_damaged_deflation_names_the_file(tmp_path: Path) -> None:
    deflated = write_deflated(write_view(tmp_path / "a.dcm"), tmp_path / "b.dcm")
    data = deflated.read_bytes()
    deflated.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(DamagedFile, match=r"b\.dcm.*cut short"):
        read_dicom(deflated)
    deflated.write_bytes(data[:-40].replace(data[400:420], b"\xff" * 20))
    with pytest.raises(DamagedFile, match=r"b\.dcm"):
        read_dicom(deflated)
