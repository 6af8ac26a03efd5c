"""Image tiles: stored tiles are sent unchanged, others are decoded, and every level keeps its own ratio."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lobule.server import tiles
from lobule.server.slide_tiles import Slides
from lobule.server.tiles import CHECK_SECONDS
from tests.server.support import (
    Scene,
    begin,
    build_scene,
    case_ids,
    client_of,
    squares,
    write_case,
    write_jpeg_slide,
)
from tests.slides.sample_files import CODINGS, tile_frames, write_dicom


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return build_scene(tmp_path_factory.mktemp("scene"))


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("rgb", [False, True], ids=["ycbcr", "rgb"])
def test_stored_tiles_are_sent_unchanged(tmp_path: Path, rgb: bool) -> None:
    pixels = squares(700, 500)
    slide = write_jpeg_slide(tmp_path / "slide.tif", [pixels], rgb=rgb)
    results = begin(tmp_path, ["a"])
    write_case(results, "a", slide, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    with client_of(results) as client, tifffile.TiffFile(slide) as tif:
        page = tif.pages[0]
        stored = slide.read_bytes()
        assert page.jpegtables is not None
        for index, (offset, length) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            row, column = divmod(index, 3)
            answer = client.get(f"/tiles/{case_ids(client)['a']}/0/{column}/{row}.jpg")
            assert answer.headers["content-type"] == "image/jpeg"
            scan = stored[offset : offset + length]
            scan = scan[scan.index(b"\xff\xda") :]
            assert scan.removesuffix(b"\xff\xd9") in answer.content  # The entropy-coded data is not touched.
            expected, _, shape = page.decode(
                scan and stored[offset : offset + length], index, jpegtables=page.jpegtables
            )
            expected = expected[0][: shape[1], : shape[2]]
            sent = decoded(answer.content)
            assert sent.shape == (256, 256, 3)  # Edge tiles have the full size, and the client crops them.
            difference = np.abs(sent[: shape[1], : shape[2]].astype(int) - expected)
            assert difference.max() <= 3, (index, difference.max())


@pytest.mark.parametrize("coding", ["jpeg", "rgb jpeg"])
def test_frames_of_dicom_slides_are_sent_unchanged(tmp_path: Path, coding: str) -> None:
    pixels = squares(300, 260)
    paths = write_dicom(tmp_path / "slide", [pixels], tile=128, coding=coding, sparse={(1, 1)})
    results = begin(tmp_path, ["a"])
    write_case(results, "a", paths[0], np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    frames = tile_frames(pixels, 128)
    encode = CODINGS[coding][2]
    with client_of(results) as client:
        case = case_ids(client)["a"]
        for index, frame in enumerate(frames):
            row, column = divmod(index, 3)
            sent = client.get(f"/tiles/{case}/0/{column}/{row}.jpg").content
            if (column, row) == (1, 1):  # Not stored.
                assert np.all(decoded(sent) == 255)
                continue
            stored = encode(frame)
            assert stored[stored.index(b"\xff\xda") :] in sent and sent.endswith(b"\xff\xd9")
            adobe = sent.index(b"Adobe")
            assert sent[adobe + 11] == (0 if coding == "rgb jpeg" else 1)
            assert np.abs(decoded(sent).astype(int) - frame).max() <= 24, (column, row)
            assert np.abs(decoded(sent).astype(int) - frame).mean() < 2


def test_levels_have_their_own_ratios(scene: Scene) -> None:
    with client_of(scene.results) as client:
        image = client.get(f"/api/cases/{case_ids(client)['one']}").json()["images"]["slide"]
    with tifffile.TiffFile(scene.slide) as tif:
        sizes = [(page.imagewidth, page.imagelength) for page in tif.pages]
    assert [tuple(level["size"]) for level in image["levels"][:3]] == sizes
    steps = [tuple(level["step"]) for level in image["levels"][:3]]
    assert steps == [(1100 / width, 900 / height) for width, height in sizes]
    assert steps[2] == (1100 / 274, 900 / 224)  # Not 4: such levels shift an overlay that assumes it.
    assert image["mpp"] == [0.5, 0.5]


def test_other_tiles_are_decoded(tmp_path: Path) -> None:
    pixels = squares(1500, 700)
    slide = tmp_path / "deflate.tif"
    tifffile.imwrite(slide, pixels, tile=(128, 128), compression="zlib", photometric="rgb")
    results = begin(tmp_path, ["a"])
    write_case(results, "a", slide, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    with client_of(results) as client:
        case = case_ids(client)["a"]
        sent = decoded(client.get(f"/tiles/{case}/0/2/1.jpg").content)
        assert np.abs(sent.astype(int) - pixels[128:256, 256:384]).mean() < 6
        levels = client.get(f"/api/cases/{case}").json()["images"]["slide"]["levels"]
        assert [level["size"] for level in levels] == [
            [1500, 700],
            [750, 350],
        ]  # A coarser level is computed.
        coarse = decoded(client.get(f"/tiles/{case}/1/0/0.jpg").content)
        assert coarse.shape == (350, 512, 3)
        expected = pixels.reshape(350, 2, 750, 2, 3).mean(axis=(1, 3))[:, :512]
        assert np.abs(coarse - expected).mean() < 6
        assert client.get(f"/tiles/{case}/1/2/0.jpg").status_code == 404


def test_fast_tiles_are_decoded_at_once_and_slow_ones_by_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slide = tmp_path / "deflate.tif"
    pixels = squares(1280, 1280)
    tifffile.imwrite(slide, pixels, tile=(128, 128), compression="zlib", photometric="rgb")
    results = begin(tmp_path, ["a"])
    write_case(results, "a", slide, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    threads: list[str] = []
    decode = Slides.decoded_tile

    def recorded(*arguments) -> bytes:
        threads.append(threading.current_thread().name.partition("_")[0])
        return decode(*arguments)

    monkeypatch.setattr(Slides, "decoded_tile", recorded)
    monkeypatch.setattr(tiles, "FAST_SECONDS", 1e9)
    with client_of(results) as client:
        case = case_ids(client)["a"]

        def request(row: int) -> list[str]:
            threads.clear()
            for column in range(4):
                sent = decoded(client.get(f"/tiles/{case}/0/{column}/{row}.jpg").content)
                expected = pixels[128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
                assert np.abs(sent.astype(int) - expected).mean() < 6
            return list(threads)

        first = request(0)
        assert len(first) == 4 and first[0] == "tiles" and "tiles" not in first[1:]
        assert request(0) == []  # From the cache.
        monkeypatch.setattr(tiles, "FAST_SECONDS", 0.0)
        assert request(1) == ["tiles"] * 4


def test_a_level_that_was_slow_by_the_clock_remains_with_the_threads(scene: Scene) -> None:
    image = Slides().open(str(scene.slide), None)
    times = tiles.DecodingTimes()
    assert not times.are_fast(image, 0)
    times.add(image, 0, 0.0001)
    times.add(image, 1, 0.0001, 0.004)  # The machine is busy.
    assert times.are_fast(image, 0) and times.are_fast(image, 1)
    times.add(image, 0, 0.0001, 1.0)
    for _ in range(100):
        times.add(image, 0, 0.0001)
    assert not times.are_fast(image, 0)
    assert times.are_fast(image, 1)


def test_etags_follow_the_file(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    with client_of(scene.results) as client:
        url = f"/tiles/{case_ids(client)['one']}/0/0/0.jpg"
        first = client.get(url)
        assert "immutable" in first.headers["cache-control"]
        tag = {"if-none-match": first.headers["etag"]}
        again = client.get(url, headers=tag)
        assert (again.status_code, again.content) == (304, b"")
        write_jpeg_slide(scene.slide, [255 - scene.pixels])
        time.sleep(CHECK_SECONDS)
        changed = client.get(url, headers=tag)
        assert changed.status_code == 200
        assert changed.headers["etag"] != first.headers["etag"]
        assert decoded(changed.content)[32, 32].tolist() == pytest.approx([215, 235, 135], abs=8)


def test_regions_and_thumbnails_show_the_slide(scene: Scene) -> None:
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        region = client.get(
            f"/api/cases/{case}/region", params={"x": 250, "y": 250, "width": 80, "height": 80, "side": 80}
        )
        sent = decoded(region.content)
        assert sent.shape == (80, 80, 3)
        assert np.abs(sent.astype(int) - scene.pixels[250:330, 250:330]).mean() < 8
        small = decoded(client.get(f"/api/cases/{case}/thumbnail").content)
        assert max(small.shape) == 256
        assert small[2, 2].tolist() == pytest.approx([40, 20, 120], abs=25)


def test_a_missing_slide_is_a_note(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    scene.slide.rename(tmp_path / "elsewhere.tif")
    with client_of(scene.results) as client:
        case = case_ids(client)["one"]
        detail = client.get(f"/api/cases/{case}").json()
        assert "not there" in detail["images"]["slide"]["missing"]
        assert (detail["images"]["slide"]["width"], detail["images"]["slide"]["height"]) == (1100, 900)
        assert client.get(f"/tiles/{case}/0/0/0.jpg").status_code == 404
        assert client.get(f"/api/cases/{case}/thumbnail").status_code == 404
        assert (
            client.get(
                f"/api/cases/{case}/map",
                params={"name": "tumour", "layer": 1, "level": 0, "column": 0, "row": 0},
            ).status_code
            == 200
        )


def test_a_moved_slide_is_found_by_name(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    moved = tmp_path / "archive" / "2026"
    moved.mkdir(parents=True)
    scene.slide.rename(moved / scene.slide.name)
    with client_of(scene.results, slides=tmp_path / "archive") as client:
        case = case_ids(client)["one"]
        assert client.get(f"/tiles/{case}/0/0/0.jpg").status_code == 200


def test_of_two_slides_of_one_name_the_one_in_the_same_folder_is_shown_or_none(tmp_path: Path) -> None:
    """The wrong one could belong to another patient."""
    scene = build_scene(tmp_path)
    archive = tmp_path / "archive"
    for study in ("a", "b"):
        (archive / study).mkdir(parents=True)
        (archive / study / scene.slide.name).write_bytes(scene.slide.read_bytes())
    same_folder = archive / "c" / scene.slide.parent.name
    scene.slide.unlink()
    with client_of(scene.results, slides=archive) as client:
        case = case_ids(client)["one"]
        assert client.get(f"/tiles/{case}/0/0/0.jpg").status_code == 404
    same_folder.mkdir(parents=True)
    (archive / "a" / scene.slide.name).rename(same_folder / scene.slide.name)
    with client_of(scene.results, slides=archive) as client:
        assert client.get(f"/tiles/{case_ids(client)['one']}/0/0/0.jpg").status_code == 200
