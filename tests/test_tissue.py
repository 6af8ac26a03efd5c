"""Tissue detection on simple pictures, on generated slides with artefacts, and on real slides."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from lobule.geometry import Box
from lobule.phantoms.slides import SlidePhantom, render, truth_of
from lobule.slides import slide as slides
from lobule.tissue import EIGHT, TissueConfig, _dilated, _without_lines, camelyon_mask, find_tissue
from lobule.units import Mpp

H_OD = np.array([0.65, 0.70, 0.29])
E_OD = np.array([0.07, 0.99, 0.11])


def picture(
    shape: tuple[int, int] = (240, 320), glass: tuple[int, int, int] = (243, 243, 241), seed: int = 0
):
    """Glass with the noise of a scanner."""
    noise = np.random.default_rng(seed).normal(0, 2, (*shape, 3))
    return np.clip(np.array(glass) + noise, 0, 255)


def stained(image: np.ndarray, where: np.ndarray, h: float, e: float, seed: int = 1) -> np.ndarray:
    """Add H&E tissue of uneven density to a picture."""
    uneven = np.random.default_rng(seed).uniform(0.6, 1.4, image.shape[:2])[..., None]
    return np.where(where[..., None], image * 10 ** (-(h * H_OD + e * E_OD) * uneven), image)


def disc(shape: tuple[int, int], row: float, column: float, radius: float) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def eight_bit(image: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


SHAPE = (240, 320)
ROUND = disc(SHAPE, 120, 130, 70)


@pytest.mark.parametrize("stain", [(0.4, 0.3), (0.5, 0.05), (0.05, 0.4), (0.08, 0.06), (0.9, 0.5)])
@pytest.mark.parametrize("glass", [(243, 243, 241), (254, 254, 254), (225, 218, 224), (230, 232, 215)])
def test_a_round_piece_of_any_stain_on_any_glass(
    stain: tuple[float, float], glass: tuple[int, int, int]
) -> None:
    tissue = find_tissue(eight_bit(stained(picture(glass=glass), ROUND, *stain)), 16.0)
    assert iou(tissue.mask, ROUND) > 0.95
    assert tissue.area_mm2 == pytest.approx(np.pi * (70 * 0.016) ** 2, rel=0.05)
    assert tissue.glass == pytest.approx(glass, abs=3)


@pytest.mark.parametrize("mpp", [2.0, 8.0, 16.0, 50.0])
def test_any_resolution(mpp: float) -> None:
    image = eight_bit(stained(picture(), ROUND, 0.3, 0.2))
    tissue = find_tissue(image, Mpp(mpp, mpp))
    assert iou(tissue.mask, ROUND) > (0.9 if mpp > 2 else 0.85)
    wide = find_tissue(image[:, ::2], Mpp(2 * mpp, mpp))
    assert wide.area_mm2 == pytest.approx(tissue.area_mm2, rel=0.05)


@pytest.mark.parametrize("glass", [(243, 243, 241), (255, 255, 255), (200, 200, 200), (235, 228, 240)])
def test_blank_slide_has_no_tissue(glass: tuple[int, int, int]) -> None:
    for noise in (0, 1):
        image = eight_bit(picture(glass=glass)) if noise else np.full((*SHAPE, 3), glass, np.uint8)
        assert find_tissue(image, 16.0).area_mm2 == 0


def test_glass_smaller_than_a_hole_has_no_tissue() -> None:
    small = Mpp(0.5, 0.5)
    assert TissueConfig().hole_mm2 * 1e6 > 400 * 400 * 0.5**2
    assert not find_tissue(picture((400, 400)).astype(np.uint8), small).mask.any()


@pytest.mark.parametrize("stain", [(0.4, 0.3), (0.15, 0.1), (0.8, 0.1)])
def test_tissue_alone_is_all_tissue(stain: tuple[float, float]) -> None:
    everywhere = np.ones(SHAPE, bool)
    image = eight_bit(stained(picture(), everywhere, *stain))
    assert find_tissue(image, 16.0).share == 1.0
    flat = np.full((*SHAPE, 3), (190, 120, 170), np.uint8)
    assert find_tissue(flat, 16.0).share == 1.0


INKS = {
    "blue": (40, 60, 160),
    "green": (30, 110, 60),
    "black": (20, 20, 25),
    "red": (205, 25, 35),
    "cyan": (40, 150, 190),
}


@pytest.mark.parametrize("ink", INKS)
def test_pen_is_excluded(ink: str) -> None:
    image = stained(picture(), ROUND, 0.4, 0.3)
    stroke = np.zeros(SHAPE, bool)
    stroke[20:40, 20:300] = stroke[20:220, 270:285] = True
    soft = ndimage.gaussian_filter(stroke.astype(float), 1.2)[..., None]
    tissue = find_tissue(eight_bit(image * (1 - soft) + np.array(INKS[ink]) * soft), 16.0)
    assert (
        tissue.pen[stroke].mean() > 0.97
        and not tissue.mask[ndimage.binary_dilation(stroke, iterations=3)].any()
    )
    assert iou(tissue.mask, ROUND & ~tissue.pen) > 0.95
    assert tissue.to_dict()["pen_mm2"] > 1


def test_shadows_edges_padding_and_dust_are_excluded() -> None:
    image = stained(picture(), ROUND, 0.4, 0.3)
    image[:, 295:298] *= 0.55
    image[:, 299:301] *= np.array([0.8, 0.72, 0.78])  # an edge with a colour fringe
    image[200:236, 230:290] *= 0.75
    image[10:14, 240:244] = 20
    image[60:64, 250:253] = (150, 80, 140)
    image[:, :12] = 0
    image[225:] = 255
    tissue = find_tissue(eight_bit(image), 16.0)
    assert iou(tissue.mask, ROUND) > 0.94
    assert not tissue.mask[:, 215:].any() and not tissue.mask[:, :30].any()


@pytest.mark.parametrize("side", [4, 8, 16, 63])
def test_limits_of_area_fit_small_pictures(side: int) -> None:
    """64 µm to 1 mm a side: tissue is not debris, glass is not a hole, and ink is still ink."""
    left = np.zeros((side, side), bool)
    left[:, : side // 2] = True
    glass = picture((side, side))
    tissue = find_tissue(eight_bit(stained(glass, np.ones_like(left), 0.4, 0.3)), 16.0)
    assert tissue.share == 1.0
    half = find_tissue(eight_bit(stained(glass, left, 0.4, 0.3)), 16.0, TissueConfig(closing_um=0))
    assert half.mask[:, : side // 2 - 1].all() and not half.mask[:, side // 2 + 1 :].any()
    assert not find_tissue(np.full((side, side, 3), INKS["blue"], np.uint8), 16.0).mask.any()
    assert not find_tissue(eight_bit(glass), 16.0).mask.any()


def test_debris_of_a_slide_is_removed() -> None:
    """On 20 mm² of glass, a speck of 0.003 mm² is debris, and one of 0.02 mm² is tissue."""
    for radius, expected in ((2, False), (5, True)):
        speck = disc(SHAPE, 60, 60, radius)
        tissue = find_tissue(eight_bit(stained(picture(), speck, 0.4, 0.3)), 16.0)
        assert tissue.mask.any() == expected


def test_holes_are_filled_up_to_a_size() -> None:
    holes = {4: True, 9: False}  # radius in pixels of 16 µm: 0.013 and 0.065 mm²
    for radius, filled in holes.items():
        image = eight_bit(stained(picture(), ROUND & ~disc(SHAPE, 120, 130, radius), 0.4, 0.3))
        assert find_tissue(image, 16.0, TissueConfig(closing_um=0)).mask[120, 130] == filled
    smaller = TissueConfig(hole_mm2=0.001, closing_um=0)
    image = eight_bit(stained(picture(), ROUND & ~disc(SHAPE, 120, 130, 4), 0.4, 0.3))
    assert not find_tissue(image, 16.0, smaller).mask[120, 130]


def test_faint_areas_are_added_up_to_200_um_from_stained_tissue() -> None:
    """A strip of tissue continues as a strip without texture, whose stain is too faint to be detected."""
    image = picture((240, 320), glass=(245, 245, 245))
    strip = np.zeros((240, 320), bool)
    strip[60:180, 40:300] = True
    image[strip] = image[strip] * 10 ** (-0.03 * E_OD)
    strip[:, 120:] = False
    image = eight_bit(stained(image, strip, 0.4, 0.3))
    row = find_tissue(image, 16.0).mask[120]
    alone = find_tissue(image, 16.0, TissueConfig(pale_um=0)).mask[120]
    reach_um = 16 * (np.flatnonzero(row).max() - np.flatnonzero(alone).max())
    assert 150 <= reach_um <= 200 + 16  # a pixel has 16 µm


@pytest.mark.parametrize("um_per_px", [4.0, 8.0, 16.0])
@pytest.mark.parametrize(("gap_um", "closed"), [(32, True), (80, False)])
def test_gaps_up_to_twice_the_closing_radius_are_closed_at_any_resolution(
    um_per_px: float, gap_um: int, closed: bool
) -> None:
    """Two pieces of tissue with a gap between them; the radius is 24 µm, so gaps up to 48 µm are closed."""
    side, gap = round(3200 / um_per_px), round(gap_um / um_per_px)
    left = side // 2
    tissue = np.zeros((side, side), bool)
    tissue[side // 4 : -side // 4, side // 4 : -side // 4] = True
    tissue[:, left : left + gap] = False
    image = eight_bit(stained(picture((side, side)), tissue, 0.4, 0.3))
    mask = find_tissue(image, um_per_px, TissueConfig(smoothing_um=0, pale_um=0)).mask
    assert mask[side // 2, left - 1] and mask[side // 2, left + gap]
    assert mask[side // 2, left : left + gap].all() == closed
    assert mask[side // 2, left : left + gap].any() == closed


@pytest.mark.parametrize("um", [0.0, 3.0, 8.0, 24.0, 90.0, 126.0])
def test_masks_are_dilated_by_an_ellipse_of_pixels(um: float) -> None:
    mpp = Mpp(7.0, 8.0)
    mask = np.random.default_rng(3).random((60, 83)) > 0.995
    reach = 40
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    ellipse = np.hypot(x * mpp.x, y * mpp.y) <= um
    padded = ndimage.binary_dilation(np.pad(mask, reach), ellipse)
    assert (_dilated(mask, mpp, um) == padded[reach:-reach, reach:-reach]).all()


def test_black_padding_and_invalid_pictures() -> None:
    assert not find_tissue(np.zeros((*SHAPE, 3), np.uint8), 16.0).mask.any()
    assert find_tissue(np.zeros((0, 5, 3), np.uint8), 16.0).share == 0
    assert find_tissue(np.full((1, 1, 3), (190, 120, 170), np.uint8), 400.0).mask.all()
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8"):
            find_tissue(wrong, 16.0)


def test_camelyon_method() -> None:
    image = stained(picture(), ROUND, 0.4, 0.3)
    image[:, :12] = 0
    tissue = find_tissue(eight_bit(image), 15.6, TissueConfig(method="camelyon"))
    assert iou(tissue.mask, ROUND) > 0.65 and not tissue.mask[:, :12].any()
    assert np.array_equal(tissue.mask, camelyon_mask(eight_bit(image)))
    # computed by hand: thresholds between two colours, and the rule that every channel exceeds 50
    two = np.zeros((10, 10, 3), np.uint8)
    two[:, :5], two[:, 5:8], two[:, 8:] = (250, 250, 250), (180, 100, 170), (180, 40, 170)
    assert np.array_equal(camelyon_mask(two)[0], [False] * 5 + [True] * 3 + [False] * 2)


def test_stored_metadata_is_plain() -> None:
    tissue = find_tissue(eight_bit(stained(picture(), ROUND, 0.4, 0.3)), 16.0)
    stored = json.loads(json.dumps(tissue.to_dict(), allow_nan=False))
    assert TissueConfig(**stored["config"]) == tissue.config and stored["area_mm2"] == tissue.area_mm2


# -- generated slides ---------------------------------------------------------------------------------------

MPP, FACTOR = 4.0, 4


CAMPAIGN = [
    pytest.param(seed, seed % 5, organ, 3000, marks=pytest.mark.campaign)
    for seed in range(20, 26)
    for organ in ("node", "breast")
]


@pytest.mark.parametrize(("seed", "site", "organ", "side"), [(5, 2, "breast", 700), *CAMPAIGN])
def test_generated_slides_with_every_artefact(seed: int, site: int, organ: str, side: int) -> None:
    phantom = SlidePhantom(
        seed=seed, width=side, height=side, mpp=MPP, site=site, organ=organ, tissue=0.35,
        artefacts=("fold", "pen", "bubble", "dust", "edge"),
    )  # fmt: skip
    image = render(phantom, Box(0, 0, side // FACTOR, side // FACTOR), FACTOR)
    truth = truth_of(phantom).mask(FACTOR)[: image.shape[0], : image.shape[1]] > 0
    tissue = find_tissue(image, MPP * FACTOR)
    assert (truth & tissue.mask).sum() > 0.97 * tissue.mask.sum()
    # The truth is the complete section with fat and vessels, of which wide ones correctly count as glass.
    filled = ndimage.binary_fill_holes(tissue.mask | (tissue.pen & truth))
    assert (truth & filled).sum() > 0.93 * truth.sum()


@pytest.mark.campaign
def test_a_generated_slide_that_is_all_tissue() -> None:
    phantom = SlidePhantom(seed=4, width=400, height=400, mpp=MPP, tissue=1.0)
    image = render(phantom, Box(0, 0, 100, 100), FACTOR)
    truth = truth_of(phantom).mask(FACTOR) > 0
    tissue = find_tissue(image, MPP * FACTOR)
    assert truth.mean() > 0.9 and (ndimage.binary_fill_holes(tissue.mask) & truth).sum() > 0.9 * truth.sum()


# -- real slides --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["idc_8863", "idc_8865"])
def test_real_sections_by_their_patches(kit: Path, name: str) -> None:
    """The data mark every 50 px patch that contains tissue, including the glass in it: compare patches."""
    with slides.open_slide(kit / f"slides/{name}.tif", mpp=4.0) as slide:
        rgb = slide.read_level(2, Box(0, 0, *slide.levels[2].size))
    classes = np.asarray(Image.open(kit / f"slides/{name}_mask.png"))
    tissue = find_tissue(rgb, 16.0)
    rows, columns = (side // 50 for side in classes.shape)
    truth = classes[25 : rows * 50 : 50, 25 : columns * 50 : 50] > 0
    # one cell of the mask is 16 µm, so a patch of 200 µm is 12.5 cells
    y, x = (
        np.minimum(np.arange(count * 50) // 4, side - 1)
        for count, side in zip((rows, columns), tissue.mask.shape, strict=True)
    )
    share = tissue.mask[np.ix_(y, x)].reshape(rows, 50, columns, 50).mean(axis=(1, 3))
    assert iou(share > 0.05, truth) > 0.9
    assert share[~truth].mean() < 0.01
    # Fat is pale: at most 2 % of the patches of each class may be left without any tissue.
    kinds = classes[25 : rows * 50 : 50, 25 : columns * 50 : 50]
    assert all((share[kinds == kind] == 0).mean() < 0.02 for kind in (1, 2))
    # The published method excludes most fat; the patches are an upper limit for the mask.
    ours, recipe = tissue.mask.sum(), camelyon_mask(rgb).sum()
    assert 0.45 < recipe / ours < 1.3
    assert ours < truth.sum() * 12.5**2


def test_pale_fatty_section(kit: Path) -> None:
    """A section of grey, faintly stained fat, assembled from its patches on white."""
    rgb, truth = mosaic(kit, "8913")
    rows, columns = truth.shape
    tissue = find_tissue(rgb, 16.0)
    y, x = (
        np.minimum(np.arange(count * 50) // 4, side - 1)
        for count, side in zip(truth.shape, rgb.shape[:2], strict=True)
    )
    share = tissue.mask[np.ix_(y, x)].reshape(rows, 50, columns, 50).mean(axis=(1, 3))
    assert truth.sum() > 800
    assert (share[truth] == 0).mean() < 0.02
    assert share[~truth].mean() < 0.005


def mosaic(kit: Path, patient: str) -> tuple[np.ndarray, np.ndarray]:
    """The patches of a patient at 16 µm/px, and which 50 px squares of level 0 have one."""
    with (kit / "patches/idc/labels.csv").open(encoding="utf-8") as lines:
        patches = [row for row in csv.DictReader(lines) if row["patient"] == patient]
    corners = np.array([(int(row["y"]) - 1, int(row["x"]) - 1) for row in patches])
    corners -= corners.min(axis=0) - 50
    rows, columns = (int(value) // 50 + 2 for value in corners.max(axis=0))
    pixels = np.full((rows * 50, columns * 50, 3), 255, np.uint8)
    truth = np.zeros((rows, columns), bool)
    for (top, left), row in zip(corners.tolist(), patches, strict=True):
        patch = np.asarray(Image.open(kit / "patches/idc" / row["file"]).convert("RGB"))
        pixels[top : top + len(patch), left : left + patch.shape[1]] = patch
        truth[top // 50, left // 50] = True
    height, width = (side // 4 * 4 for side in pixels.shape[:2])
    blocks = pixels[:height, :width].reshape(height // 4, 4, width // 4, 4, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8), truth


def test_a_real_aperio_slide(kit: Path) -> None:
    with slides.open_slide(kit / "slides/CMU-1-Small-Region.svs") as slide:
        rgb = slide.read(Box(0, 0, *slide.size), mpp=8.0)
    tissue = find_tissue(rgb, 8.0)
    assert 0.35 < tissue.share < 0.55
    corner = rgb.shape[1] // 4
    assert not tissue.mask[: corner // 2, -corner:].any()
    assert tissue.mask[-corner // 2 :, corner * 2 : corner * 3].mean() > 0.7


@pytest.mark.parametrize("mpp", [Mpp(16.0, 16.0), Mpp(40.0, 10.0)])
def test_lines_are_removed_whether_or_not_their_spread_has_to_be_computed(mpp: Mpp) -> None:
    """Straight and bent ellipses of many widths, of which those that are too large are not measured."""
    config, rng = TissueConfig(), np.random.default_rng(0)
    y, x = np.mgrid[:600, :600]
    pictures_with_tissue = pictures_without = 0
    for number in range(60):
        angle, half_width = rng.uniform(0, np.pi), rng.uniform(20, 140) if number % 2 else rng.uniform(45, 75)
        along = (x - 300) * mpp.x * np.cos(angle) + (y - 300) * mpp.y * np.sin(angle)
        across = (y - 300) * mpp.y * np.cos(angle) - (x - 300) * mpp.x * np.sin(angle)
        across += (number % 4 == 3) * along**2 / 20_000
        mask = (along / 2_500) ** 2 + (across / half_width) ** 2 <= 1
        pieces, count = ndimage.label(mask, EIGHT)
        expected = mask.copy()
        for piece in range(1, count + 1):
            rows, columns = np.nonzero(pieces == piece)
            lengths = (np.ptp(rows) + 1) * mpp.y, (np.ptp(columns) + 1) * mpp.x
            if np.hypot(*lengths) >= config.line_um:
                spread = np.linalg.eigvalsh(np.cov(np.stack([rows * mpp.y, columns * mpp.x])))
                if 4 * np.sqrt(max(0.0, spread[0])) < config.line_width_um:
                    expected[pieces == piece] = False
        np.testing.assert_array_equal(_without_lines(mask, mpp, config), expected)
        pictures_with_tissue += bool(expected.any())
        pictures_without += not expected.any()
    assert pictures_with_tissue > 5 and pictures_without > 5
