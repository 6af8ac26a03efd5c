"""DICOM folders with damaged neighbours: a valid file opens quickly, and refusals state the reason."""

from __future__ import annotations

import resource
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest

from lobule.errors import DamagedFile, TooLarge, UnknownFormat
from lobule.geometry import Box
from lobule.slides import dicom_series, open_slide
from lobule.slides.dicom_deflate import HEADER_BYTES, inflate, read_file_meta
from tests.slides.deflated import write_deflated, write_deflated_bomb
from tests.slides.sample_files import picture, pyramid, write_dicom

LEVELS = pyramid(picture(150, 120), 2)
ROOT = Path(__file__).parents[2]


def read_level_0(path: Path) -> np.ndarray:
    with open_slide(path) as slide:
        return slide.read_level(0, Box(0, 0, *slide.size))


def test_deflated_bomb_is_refused_and_its_neighbour_opens(tmp_path: Path) -> None:
    sound = write_dicom(tmp_path, LEVELS, coding="native")[0]
    bomb = write_deflated_bomb(sound, tmp_path / "bomb.dcm")
    assert bomb.stat().st_size < 8 << 20
    script = (
        "import sys\n"
        "from lobule.slides import open_slide\n"
        "from lobule.mammograms.dicom_header import read_dicom_header\n"
        "from lobule.errors import CaseError\n"
        "from pathlib import Path\n"
        "with open_slide(sys.argv[1]) as slide: print(len(slide.levels))\n"
        "try: open_slide(sys.argv[2])\n"
        "except CaseError as error: print(error)\n"
        "print(read_dicom_header(Path(sys.argv[2])).is_slide)\n"
        # VmHWM is the peak of this process; ru_maxrss would include what its parent held when it forked
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    command = [sys.executable, "-c", script, str(sound), str(bomb)]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, check=True)
    levels, refusal, is_slide, peak_kib = done.stdout.splitlines()
    assert (levels, is_slide) == ("2", "True")
    assert "deflated as a whole" in refusal and "bomb.dcm" in refusal and "dcmconv" in refusal
    assert int(peak_kib) < 1 << 20
    assert done.stderr == ""


def test_inflation_stops_at_its_limit(tmp_path: Path) -> None:
    source = write_dicom(tmp_path, LEVELS[:1], coding="native")[0]
    deflated = write_deflated(source, tmp_path / "deflated.dcm")
    with deflated.open("rb") as stream:
        meta = read_file_meta(stream)
        assert meta is not None and meta.is_deflated
        copy = pydicom.dcmread(inflate(stream, meta, deflated, HEADER_BYTES))
        assert copy.PixelData == pydicom.dcmread(source).PixelData  # the same data set, by pydicom alone
        exact = len(inflate(stream, meta, deflated, HEADER_BYTES).read()) - meta.end
        with pytest.raises(TooLarge, match=r"deflated\.dcm.*dcmconv"):
            inflate(stream, meta, deflated, exact // 2)
        cut = pydicom.dcmread(
            inflate(stream, meta, deflated, 2048, stop_at_limit=True), stop_before_pixels=True
        )
        assert cut.SeriesInstanceUID == copy.SeriesInstanceUID
    damaged = deflated.read_bytes()
    deflated.write_bytes(damaged[: len(damaged) - 200])
    with deflated.open("rb") as stream, pytest.raises(DamagedFile, match="cut short"):
        inflate(stream, meta, deflated, HEADER_BYTES)


def test_headers_of_neighbours_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_dicom(tmp_path, LEVELS[:1], coding="native", series=f"s{index}")[0] for index in range(12)]
    (tmp_path / "rubbish.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 4000)
    read: list[Path] = []
    header_of = dicom_series._header

    def counted(file: Path) -> object:
        read.append(file)
        return header_of(file)

    monkeypatch.setattr(dicom_series, "_header", counted)
    for path in paths:
        read_level_0(path)
    # Each neighbour is read once for all slides, and the file of each slide once more for its errors.
    assert len(read) == len(paths) + 1 + len(paths)
    paths[3].write_bytes(paths[3].read_bytes() + b"\0\0")  # a file that changed is read again
    read.clear()
    read_level_0(paths[0])
    assert read == [paths[0], paths[3]]


def test_series_without_image_type_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS[:1], coding="native")[0]
    dataset = pydicom.dcmread(path)
    for image_type, cause in (
        (None, "no ImageType in"),
        (["DERIVED", "PRIMARY", "LABEL"], r"PRIMARY\\LABEL"),
    ):
        del dataset.ImageType
        if image_type is not None:
            dataset.ImageType = image_type
        dataset.save_as(path)
        with pytest.raises(UnknownFormat, match=f"{cause}.*slide_0.dcm") as caught:
            open_slide(path)
        assert "Copy the file again" not in str(caught.value)
        dataset.ImageType = ""


def test_unsupported_compression_is_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS[:1], coding="jpeg")[0]
    data = path.read_bytes()
    mpeg = b"1.2.840.10008.1.2.4.102"  # MPEG-4 AVC, in place of JPEG Baseline
    at = data.index(b"1.2.840.10008.1.2.4.50")
    start = data.index(b"\x02\x00\x10\x00UI")
    assert at == start + 8
    path.write_bytes(data[: start + 6] + b"\x18\x00" + mpeg.ljust(24, b"\0") + data[at + 22 :])
    with pytest.raises(UnknownFormat, match=r"compressed in a way.*MPEG-4.*slide_0\.dcm") as caught:
        open_slide(path)
    assert "Copy the file again" not in str(caught.value)


def test_values_that_deviate_from_the_standard_do_not_warn(tmp_path: Path) -> None:
    path = write_dicom(tmp_path, LEVELS[:1], coding="native")[0]
    dataset = pydicom.dcmread(path)
    identifier = dataset.SeriesInstanceUID.encode()
    assert len(identifier) > 20
    path.write_bytes(path.read_bytes().replace(identifier, b"1.02." + identifier[5:]))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert np.array_equal(read_level_0(path), LEVELS[0])
    assert caught == []
