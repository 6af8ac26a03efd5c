"""`open_slide`, `Slide` and lattices: the choice of level, the position of boxes, and refused input."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from lobule.errors import (
    ConfigError,
    DamagedFile,
    FinerThanSlide,
    LobuleError,
    MissingMpp,
    NotReadable,
    TooLarge,
    UnknownFormat,
)
from lobule.geometry import Box, Size, level_step
from lobule.slides import READERS, RGB, Level, Slide, StatedMpp, open_slide
from lobule.slides.slide import open_mask
from lobule.units import Mpp
from tests.slides.sample_files import picture, pyramid, write_tiff


class SyntheticBackend:
    """A backend without a file, in which each pixel encodes its position."""

    format = "drawn"
    properties: Mapping[str, str] = {}
    associated: Mapping[str, Size | None] = {}
    bounds: Box | None = None

    def __init__(self, sizes: list[Size], mpp: Mpp | None = None) -> None:
        self.levels = tuple(Level(size, Size(64, 64)) for size in sizes)
        self.stated_mpp = None if mpp is None else StatedMpp(mpp, "drawn")

    def reductions(self, level: int) -> tuple[int, ...]:
        return (1,)

    def read(self, level: int, box: Box, reduce: int = 1) -> RGB:
        y, x = np.mgrid[box.y : box.bottom, box.x : box.right]
        return np.stack([x % 251, y % 241, np.full_like(x, level)], axis=-1).astype(np.uint8)

    def read_associated(self, name: str) -> RGB:
        raise KeyError(name)

    def close(self) -> None: ...


@pytest.fixture
def synthetic_slide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Slide:
    """2220 × 2967 px at 0.25 µm/px, with levels reduced by 4 and 16 and rounded down."""
    sizes = [Size(2220, 2967), Size(555, 741), Size(138, 185)]
    (tmp_path / "a.drawn").write_text("drawn")
    monkeypatch.setitem(READERS, "drawn", lambda path: SyntheticBackend(sizes, Mpp(0.25, 0.25)))
    return open_slide(tmp_path / "a.drawn", backend="drawn")


# -- lattices ---------------------------------------------------------------------------------------------


def test_steps_are_the_whole_factors_that_made_the_levels(synthetic_slide: Slide) -> None:
    assert [synthetic_slide.steps(level) for level in range(3)] == [(1, 1), (4, 4), (16, 16)]


@pytest.mark.parametrize(
    ("mpp", "level", "true"),
    [(0.25, 0, 0.25), (0.274, 0, 0.25), (0.228, 0, 0.25), (1.09, 1, 1.0), (0.92, 1, 1.0), (4.2, 2, 4.0)],
)
def test_level_within_ten_percent_is_read_unscaled_with_its_true_mpp(
    synthetic_slide: Slide, mpp: float, level: int, true: float
) -> None:
    lattice = synthetic_slide.lattice(mpp=mpp)
    assert lattice.level == level
    assert lattice.mpp is not None and lattice.mpp.mean == pytest.approx(true)
    assert (synthetic_slide.read(Box(0, 0, 640, 640), mpp=mpp)[..., 2] == level).all()


@pytest.mark.parametrize("mpp", [0.28, 0.5, 0.89, 1.12, 2.0, 8.0])
def test_other_resolutions_are_resampled_on_an_exact_lattice(synthetic_slide: Slide, mpp: float) -> None:
    lattice = synthetic_slide.lattice(mpp=mpp)
    assert lattice.level is None and lattice.mpp == Mpp.square(mpp)
    assert lattice.step_x == lattice.step_y == Fraction(str(mpp)) / Fraction("0.25")


def test_x_and_y_may_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("drawn")
    monkeypatch.setitem(READERS, "drawn", lambda path: SyntheticBackend([Size(100, 100)], Mpp(0.25, 0.5)))
    lattice = open_slide(tmp_path / "a", backend="drawn").lattice(mpp=2.0)
    assert (lattice.step_x, lattice.step_y, lattice.size) == (8, 4, Size(13, 25))


def test_finer_than_the_slide_requires_upsample(synthetic_slide: Slide) -> None:
    with pytest.raises(FinerThanSlide, match=r"0\.25 µm/px at level 0.*--upsample"):
        synthetic_slide.lattice(mpp=0.125)
    assert synthetic_slide.lattice(mpp=0.125, upsample=True).step_x == Fraction(1, 2)


def test_resolution_must_be_given_exactly_once(synthetic_slide: Slide) -> None:
    for wrong in (
        {},
        {"mpp": 1.0, "level": 1},
        {"level": 3},
        {"level": -1},
        {"mpp": 0.0},
        {"mpp": float("nan")},
    ):
        with pytest.raises(ConfigError):
            synthetic_slide.lattice(**wrong)  # type: ignore[arg-type]


@given(factor=st.integers(1, 64), length=st.integers(64, 400_000), up=st.booleans())
def test_level_steps_recover_the_factor(factor: int, length: int, up: bool) -> None:
    """Very short levels are excluded, because a neighbouring factor gives the same length."""
    level = -(-length // factor) if up else length // factor
    step = level_step(length, level)
    assert level in (length // step, -(-length // step))
    if level > 2 * factor:
        assert step == factor


@given(x=st.integers(-3000, 3000), y=st.integers(-3000, 3000), level=st.integers(0, 2))
def test_neighbouring_level_0_boxes_meet_at_every_level(x: int, y: int, level: int) -> None:
    slide = Slide("none")
    slide._backend = SyntheticBackend([Size(2220, 2967), Size(555, 741), Size(138, 185)])
    lattice = slide.lattice(level=level)
    side = int(lattice.step_x) * 8
    left, right = lattice.of_l0(Box(x, y, side, side)), lattice.of_l0(Box(x + side, y, side, side))
    assert left.right == right.x and left.y == right.y
    both = slide.read_level(level, Box(left.x, left.y, 16, 8))
    halves = [slide.read_level(level, left), slide.read_level(level, right)]
    assert np.array_equal(both, np.concatenate(halves, axis=1))


def test_resampled_reads_do_not_depend_on_their_box(tmp_path: Path) -> None:
    slide = open_slide(write_tiff(tmp_path / "a.tif", pyramid(picture(500, 400), 2), mpp=0.25))
    lattice = slide.lattice(mpp=0.37)
    level_pixels = slide.read_lattice(lattice, Box(0, 0, *lattice.size))
    box_pixels = slide.read_lattice(lattice, Box(57, 91, 83, 45))
    assert np.array_equal(box_pixels, level_pixels[91:136, 57:140])
    assert level_pixels.std() > 10


# -- µm/px given by the user and stated by the file -------------------------------------------------------


def test_given_mpp_overrides_and_a_missing_one_is_an_error(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)])
    with open_slide(path) as slide:
        assert slide.lattice(level=0).mpp is None
        with pytest.raises(MissingMpp, match=r"a\.tif.*--slide-mpp.*mpp column"):
            slide.read(Box(0, 0, 10, 10), mpp=0.5)
    with open_slide(path, mpp=Mpp(0.5, 0.25)) as slide:
        assert slide.mpp == Mpp(0.5, 0.25)
    with open_slide(write_tiff(tmp_path / "b.tif", [picture(100, 80)], mpp=0.25), mpp=0.5) as slide:
        assert slide.mpp == Mpp.square(0.5) and "given" in slide.stated_mpp.source  # type: ignore[union-attr]


def test_absurd_boxes_are_refused(synthetic_slide: Slide) -> None:
    for box in (Box(0, 0, 0, 5), Box(0, 0, 5, -1), Box(0, 0, 1 << 20, 1 << 20)):
        with pytest.raises(ConfigError):
            synthetic_slide.read_lattice(synthetic_slide.lattice(level=0), box)


def test_thumbnail_shows_the_complete_slide(tmp_path: Path) -> None:
    pixels = picture(640, 320)
    with open_slide(write_tiff(tmp_path / "a.tif", [pixels])) as slide:
        thumbnail = slide.thumbnail(64)
        expected = pixels.reshape(32, 10, 64, 10, 3).mean(axis=(1, 3))
        assert np.abs(thumbnail - expected).max() <= 1
        assert np.array_equal(slide.thumbnail(9999), pixels)


# -- opening ----------------------------------------------------------------------------------------------


def test_backends_are_tried_in_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)])
    formats = {name: open_slide(path, backend=name).format for name in ("tiff", "openslide", "flat")}
    assert formats["flat"] == "flat-tiff" and open_slide(path).format == formats["tiff"]
    with pytest.raises(UnknownFormat, match="'dicom' cannot read"):
        open_slide(path, backend="dicom")
    with pytest.raises(ConfigError, match="one of tiff, dicom, openslide, flat"):
        open_slide(path, backend="tif")


def expect(path: Path, error: type[LobuleError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        open_slide(path)
    assert path.name in str(caught.value)


def test_unreadable_paths_give_specific_errors(tmp_path: Path) -> None:
    expect(tmp_path / "missing.svs", NotReadable, "no such file")
    expect(tmp_path, NotReadable, "folder")
    (tmp_path / "empty.svs").write_bytes(b"")
    expect(tmp_path / "empty.svs", DamagedFile, "empty")
    (tmp_path / "text.svs").write_text("not a slide")
    expect(tmp_path / "text.svs", UnknownFormat, r"can read\..*vips tiffsave")
    os.mkfifo(tmp_path / "pipe")
    expect(tmp_path / "pipe", NotReadable, "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_file_without_permission_is_reported(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", [picture(100, 80)])
    path.chmod(0)
    expect(path, NotReadable, "permission")


def test_absurd_levels_are_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("drawn")
    for size in (Size(5_000_000, 10), Size(10, 5_000_000), Size(0, 10)):
        monkeypatch.setitem(READERS, "drawn", lambda path, size=size: SyntheticBackend([size]))
        with pytest.raises(TooLarge, match="level 0"):
            open_slide(tmp_path / "a", backend="drawn")


def test_slide_opens_lazily_and_open_slide_eagerly(tmp_path: Path) -> None:
    slide = Slide(str(tmp_path / "missing.svs"))
    assert "missing" in repr(slide)
    with pytest.raises(NotReadable):
        slide.levels  # noqa: B018
    with pytest.raises(NotReadable):
        open_slide(tmp_path / "missing.svs")


def test_missing_tiles_are_0_in_masks_and_white_in_slides(tmp_path: Path) -> None:
    values = np.zeros((512, 512), np.uint8)
    values[40:80, 300:340] = 255
    tiles = [values[y : y + 256, x : x + 256] for y in (0, 256) for x in (0, 256)]
    path = tmp_path / "mask.tif"
    with tifffile.TiffWriter(path) as out:
        coded = (zlib.compress(tile.tobytes()) if tile.any() else b"" for tile in tiles)
        out.write(coded, shape=(512, 512), dtype="uint8", tile=(256, 256), compression="zlib")
    with open_mask(path) as mask:
        assert np.array_equal(mask.read(Box(0, 0, 512, 512), level=0)[..., 0], values)
    with open_slide(path) as slide:
        white = slide.read(Box(0, 0, 512, 512), level=0)[..., 0]
    assert (white[:, :256] == 255).all() and np.array_equal(white[:256, 256:], values[:256, 256:])
