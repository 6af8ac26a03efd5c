"""Generated slides: the same bytes from the same seed, no seams, exact truth, files that others can read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import shapely
import tifffile

from lobule.errors import ConfigError
from lobule.geometry import Box
from lobule.phantoms.painting import BLOCK, Painter
from lobule.phantoms.slides import SlidePhantom, render, truth_of, write_slide
from lobule.phantoms.truth import GLASS, TISSUE, TUMOUR, SlideTruth

PHANTOM = SlidePhantom(3, 1500, 1300, 1.0, site=1, tissue=0.5, micro=1, itc=1, mimics=1)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SlideTruth]:
    path = tmp_path_factory.mktemp("phantom") / "one.svs"
    return path, write_slide(PHANTOM, path, style="svs", quality=95, subsampling="444", threads=1)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return render(PHANTOM, Box(0, 0, PHANTOM.width, PHANTOM.height))


@pytest.mark.parametrize(("style", "name"), [("svs", "b.svs"), ("generic", "b.tif"), ("ome", "b.ome.tif")])
def test_the_same_seed_gives_the_same_bytes_for_any_thread_count(
    style: str, name: str, tmp_path: Path
) -> None:
    small = SlidePhantom(8, 1100, 700, 1.0, site=1, tissue=0.4)
    files = []
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        path = tmp_path / str(threads) / name
        write_slide(small, path, style=style, threads=threads)
        files.append(path.read_bytes())
        assert [item.name for item in path.parent.iterdir()] == [name]  # nothing is left lying about
    assert files[0] == files[1]


def test_another_seed_gives_another_slide(pixels: np.ndarray) -> None:
    other = SlidePhantom(4, 1500, 1300, 1.0, site=1, tissue=0.5, micro=1, itc=1, mimics=1)
    assert np.abs(render(other, Box(500, 500, 300, 300)).astype(int) - pixels[500:800, 500:800]).mean() > 10


@pytest.mark.parametrize("box", [Box(0, 0, 40, 30), Box(500, 505, 90, 60), Box(730, 300, 600, 500)])
def test_a_region_alone_is_that_part_of_the_whole(box: Box, pixels: np.ndarray) -> None:
    region = render(PHANTOM, box)
    np.testing.assert_array_equal(region, pixels[box.y : box.bottom, box.x : box.right])


def test_a_region_alone_in_a_fresh_painter(pixels: np.ndarray) -> None:
    block = Painter(PHANTOM).block(1, 1)
    assert block is not None
    rgb = block.view(np.uint8).reshape(BLOCK, BLOCK, 4)[..., :3]
    np.testing.assert_array_equal(rgb, pixels[BLOCK : 2 * BLOCK, BLOCK : 2 * BLOCK])


def test_neighbouring_blocks_meet_without_a_seam(pixels: np.ndarray) -> None:
    tissue = truth_of(PHANTOM).mask(1) > GLASS
    for axis in (0, 1):
        values, inside = np.moveaxis(pixels, axis, 0).astype(int), np.moveaxis(tissue, axis, 0)
        steps = np.abs(values[1:] - values[:-1]).mean(-1)
        mean = np.array(
            [
                row[keep].mean() if keep.sum() > 200 else np.nan
                for row, keep in zip(steps, inside[1:], strict=True)
            ]
        )
        around = mean[BLOCK - 60 : BLOCK + 60]
        at = mean[BLOCK - 1]
        assert abs(at - np.nanmean(around)) < 4 * np.nanstd(around)


def test_levels_are_means_of_the_finer_ones(written: tuple[Path, SlideTruth], pixels: np.ndarray) -> None:
    with tifffile.TiffFile(written[0]) as file:
        levels = [level.asarray() for level in file.series[0].levels]
        thumbnail = file.series[1].asarray()
    assert [level.shape for level in levels] == [(1300, 1500, 3), (650, 750, 3)]
    for level, factor in zip(levels, (1, 2), strict=True):
        height, width = level.shape[:2]
        exact = (
            pixels[: height * factor, : width * factor].reshape(height, factor, width, factor, 3).mean((1, 3))
        )
        error = np.abs(level - exact)
        assert error.mean() < 3
        assert np.percentile(error, 99) < 12
    assert np.abs(thumbnail.astype(int) - levels[1]).mean() < 4


def test_openslide_reads_it(written: tuple[Path, SlideTruth], pixels: np.ndarray) -> None:
    with openslide.OpenSlide(written[0]) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 1.0
        assert slide.level_dimensions == ((1500, 1300), (750, 650))
        region = np.asarray(slide.read_region((400, 300), 0, (500, 400)).convert("RGB")).astype(int)
    assert np.abs(region - pixels[300:700, 400:900]).mean() < 4


def test_a_generic_tiff_says_its_resolution(tmp_path: Path) -> None:
    path = tmp_path / "g.tif"
    write_slide(SlidePhantom(1, 1300, 600, 1.0, site=1, tissue=0.2), path, style="generic", tile=512)
    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(1.0)
        assert slide.level_dimensions == ((1300, 600), (650, 300))


def test_glass_is_one_colour_and_tissue_is_not(pixels: np.ndarray) -> None:
    mask = truth_of(PHANTOM).mask(1)
    glass = pixels[mask == GLASS]
    assert (glass == glass[0]).all()
    assert glass[0].min() > 220
    assert pixels[mask > GLASS].std(0).min() > 20
    assert pixels[mask > GLASS].mean() < glass.mean() - 30


def test_the_mask_is_the_outlines(written: tuple[Path, SlideTruth]) -> None:
    truth = written[1]
    mask = truth.mask(1)
    x, y = np.meshgrid(np.arange(1500) + 0.5, np.arange(1300) + 0.5)
    tumour = np.zeros(mask.shape, bool)
    for one in truth.outlines:
        tumour |= shapely.contains_xy(shapely.Polygon(one.points), x, y)
    tissue = np.zeros(mask.shape, bool)
    for points in truth.tissue:
        tissue |= shapely.contains_xy(shapely.Polygon(points), x, y)
    np.testing.assert_array_equal(mask, np.where(tumour, TUMOUR, np.where(tissue, TISSUE, GLASS)))
    assert tissue[tumour].all()
    # at an odd step the centre of a cell is the centre of a pixel
    np.testing.assert_array_equal(truth.mask(5), mask[2::5, 2::5])
    np.testing.assert_array_equal(truth.mask(5, Box(30, 40, 20, 10)), mask[2::5, 2::5][40:50, 30:50])
    assert tissue.mean() == pytest.approx(PHANTOM.tissue, abs=0.03)


def test_lesions_have_the_sizes_of_their_classes() -> None:
    truth = truth_of(SlidePhantom(2, 5000, 5000, 1.0, site=1, tissue=0.6, macro=1, micro=2, itc=3))
    names = [one.lesion_class for one in truth.outlines]
    assert names == ["macro", "micro", "micro", "itc", "itc", "itc"]
    bounds = {"macro": (2000, 8000), "micro": (200, 2000), "itc": (0, 200)}
    for one in truth.outlines:
        corners = one.points
        longest = max(float(np.hypot(*(corners - corner).T).max()) for corner in corners)
        assert one.size_um == pytest.approx(longest * truth.mpp)
        assert bounds[one.lesion_class][0] <= one.size_um <= bounds[one.lesion_class][1]
    shapes = [shapely.Polygon(one.points) for one in truth.outlines]
    assert not any(a.intersects(b) for i, a in enumerate(shapes) for b in shapes[:i])


def test_a_lesion_without_room_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no room for a lesion of class 'macro'"):
        truth_of(SlidePhantom(1, 800, 800, 1.0, site=1, macro=1))


def test_tumour_changes_its_outline_and_nothing_else(pixels: np.ndarray) -> None:
    truth = truth_of(PHANTOM)
    clear = render(
        SlidePhantom(3, 1500, 1300, 1.0, site=1, tissue=0.5, mimics=1, lesions=()), Box(0, 0, 1500, 1300)
    )
    changed = (clear != pixels).any(-1)
    near = shapely.union_all([shapely.Polygon(one.points) for one in truth.outlines]).buffer(14)
    x, y = np.meshgrid(np.arange(1500) + 0.5, np.arange(1300) + 0.5)
    assert not changed[~shapely.contains_xy(near, x, y)].any()
    assert changed[truth.mask(1) == TUMOUR].mean() > 0.9


@pytest.mark.parametrize("kind", ["fold", "pen", "bubble", "blur", "dust", "edge"])
def test_artefacts_show_and_leave_the_truth_alone(kind: str, pixels: np.ndarray) -> None:
    phantom = SlidePhantom(
        3, 1500, 1300, 1.0, site=1, tissue=0.5, micro=1, itc=1, mimics=1, artefacts=(kind,)
    )
    marked = render(phantom, Box(0, 0, 1500, 1300))
    changed = (marked != pixels).any(-1)
    assert 0.0002 < changed.mean() < 0.7
    np.testing.assert_array_equal(truth_of(phantom).mask(3), truth_of(PHANTOM).mask(3))
    if kind == "blur":  # softer, of the same colour, and without a seam at the border of blocks
        steps = np.abs(np.diff(marked.astype(int), axis=1)).mean(-1)[:, BLOCK - 1]
        inner = np.abs(np.diff(marked.astype(int), axis=1)).mean(-1)[:, BLOCK - 40 : BLOCK + 40]
        assert np.abs(marked[changed].mean(0) - pixels[changed].mean(0)).max() < 5
        assert (
            np.abs(np.diff(marked.astype(int), axis=0)).mean()
            < np.abs(np.diff(pixels.astype(int), axis=0)).mean()
        )
        assert steps.mean() < inner.mean(0).max() + 0.5


@pytest.mark.parametrize(
    "wrong", [{"width": 0}, {"mpp": 0.001}, {"tissue": 2.0}, {"artefacts": ("smudge",)}, {"organ": "lung"}]
)
def test_what_does_not_fit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        SlidePhantom(**{"seed": 1, "width": 100, "height": 100} | wrong)  # type: ignore[arg-type]
