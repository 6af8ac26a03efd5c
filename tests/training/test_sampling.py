"""Sampling: the stream does not depend on who makes it, and every label is what the outlines say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.augment import AugmentConfig
from lobule.cohort import Case, Cohort
from lobule.errors import CaseError, ConfigError
from lobule.geometry import Box
from lobule.slides.slide import open_slide
from lobule.tissue import TissueConfig
from lobule.training.patch_pools import gather
from lobule.training.patch_sampling import (
    NEITHER,
    NORMAL,
    TUMOUR,
    FixedPositions,
    Outlined,
    Pool,
    Runs,
    find_positions,
)
from lobule.training.sampling import SampleConfig, Samples, SampleStream, label_of
from tests.scanning.support import pixels_of, write_slide

MPP, SIDE = 0.5, 32
CONFIG = SampleConfig(MPP, SIDE)
TUMOUR_RING = [(203, 110), (700, 150), (640, 480), (300, 520)]
HOLE = [(350, 250), (480, 260), (470, 380), (340, 370)]
TINY = [(2200, 800), (2203, 801), (2201, 804)]
"""Far smaller than a cell of the tissue mask."""


def ring(points: Sequence[tuple[float, float]]) -> np.ndarray:
    return np.array(points, np.float64)


def square(x: float, y: float, side: float) -> np.ndarray:
    return ring([(x, y), (x + side, y), (x + side, y + side), (x, y + side)])


def outlined_case(
    folder: Path, name: str, *polygons: Polygon, label: str = "tumor", seed: int = 0, **case_options: object
) -> Case:
    path = write_slide(folder / f"{name}.tif", pixels_of(1100, 700, seed))
    outlines = None
    if polygons:
        outlines = folder / f"{name}.geojson"
        write_annotation(outlines, Annotation(polygons))
    where = None if outlines is None else str(outlines)
    return Case(name, f"p-{name}", "slide", str(path), mpp=MPP, label=label, annotation=where, **case_options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("sample")
    polygons = (Polygon(ring(TUMOUR_RING)), Polygon(ring(HOLE), "exclusion"))
    return Cohort(
        (
            outlined_case(folder, "outlined", *polygons),
            outlined_case(folder, "second", Polygon(square(500, 300, 120)), seed=1, site="B"),
            outlined_case(folder, "clean", label="normal", seed=2, site="B"),
        )
    )


@pytest.fixture(scope="module")
def pool(cohort: Cohort) -> Pool:
    return gather(cohort, None)


def first_batches(
    pool: Pool, config: SampleConfig, count: int, size: int = 8, **stream_options: object
) -> list[Samples]:
    with SampleStream(pool, config, size, seed=5, **stream_options) as stream:  # type: ignore[arg-type]
        return list(islice(stream, count))


def same(one: list[Samples], other: list[Samples]) -> bool:
    return all(
        np.array_equal(a.pixels, b.pixels) and np.array_equal(a.labels, b.labels) and a.draws == b.draws
        for a, b in zip(one, other, strict=True)
    )


# -- places -------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=6))
def test_runs_are_the_cells_of_the_mask(rows: list[list[bool]]) -> None:
    mask = np.array(rows)
    runs, cells = Runs.of(mask), np.flatnonzero(mask)
    assert [runs.pick(number) for number in range(len(runs))] == cells.tolist()
    assert [cell in runs for cell in range(mask.size)] == mask.ravel().tolist()


@pytest.mark.parametrize("label", [NORMAL, TUMOUR])
def test_positions_agree_with_point_in_polygon_and_are_uniform(pool: Pool, label: int) -> None:
    positions = pool.slides[0]
    rng = np.random.default_rng(3)
    points = np.array([positions.draw(label, rng) for _ in range(1500)])
    lesion, hole = shapely.Polygon(TUMOUR_RING), shapely.Polygon(HOLE)
    tumour = shapely.difference(lesion, hole)
    region = tumour if label == TUMOUR else shapely.box(0, 0, 1100, 700).difference(lesion).difference(hole)
    assert shapely.contains_xy(region, *points.T).all()
    # even: the share left of a line is the area left of it
    left = shapely.box(0, 0, 400, 700)
    expected = shapely.intersection(region, left).area / region.area
    assert (points[:, 0] < 400).mean() == pytest.approx(expected, abs=0.05)


def test_points_in_the_last_cells_lie_inside_the_slide(tmp_path: Path) -> None:
    path = write_slide(tmp_path / "tissue.tif", np.full((701, 1101, 3), (190, 90, 170), np.uint8))
    case = Case("t", "p", "slide", str(path), mpp=MPP, label="normal")
    positions, _ = find_positions(case, TissueConfig(mpp=8.0))
    size, cell = np.array([1101, 701]), np.array(positions.l0_cell)
    last_corner = size // cell * cell
    assert (last_corner < size).all() and (last_corner + cell > size).all()
    rng = np.random.default_rng(6)
    points = np.array([positions.draw(NORMAL, rng) for _ in range(4000)])
    assert (points >= 0).all() and (points < size).all()
    assert (points > last_corner).any(axis=0).all(), "no point lies in the last cells"


def test_points_of_a_region_cover_exactly_the_region(tmp_path: Path) -> None:
    """Outlines and tissue are cut to the region; small lesions count where they lie in it completely."""
    region = Box(150, 90, 500, 420)
    small_inside, small_outside = square(300, 450, 2), square(900, 600, 2)
    polygons = [Polygon(square(200, 100, 250)), Polygon(small_inside), Polygon(small_outside)]
    slide_case = outlined_case(tmp_path, "region", *polygons)
    positions, _ = find_positions(replace(slide_case, kind="region", l0_box=region), None)
    assert [polygon.l0_box for polygon in positions.small] == [Polygon(small_inside).l0_box]
    cell = max(positions.l0_cell)
    rng = np.random.default_rng(4)
    for label, area in ((NORMAL, region), (TUMOUR, Box(200, 100, 250, 250))):
        x, y = np.array([positions.draw(label, rng) for _ in range(4000)]).T
        inner = y < 440  # without the small lesion
        for values, start, stop in ((x, area.x, area.right), (y[inner], area.y, min(area.bottom, 440))):
            assert start - cell <= values.min() <= start + 2 * cell
            assert stop - 2 * cell <= values.max() <= stop + cell


def test_no_points_lie_in_an_excluded_box(tmp_path: Path) -> None:
    excluded = square(400, 200, 200)
    case = outlined_case(tmp_path, "excluded", Polygon(square(50, 50, 60)), Polygon(excluded, "exclusion"))
    positions, _ = find_positions(case, None)
    rng = np.random.default_rng(5)
    points = np.array([positions.draw(NORMAL, rng) for _ in range(6000)])
    hole = shapely.Polygon(excluded)
    assert not shapely.contains_xy(hole, *points.T).any()
    for side in (shapely.box(370, 200, 400, 400), shapely.box(600, 200, 630, 400),
                 shapely.box(400, 170, 600, 200), shapely.box(400, 400, 600, 430)):  # fmt: skip
        assert shapely.contains_xy(side, *points.T).sum() > 15


def test_exclusions_are_of_neither_class() -> None:
    outlined = Outlined.of(Annotation((Polygon(ring(TUMOUR_RING)), Polygon(ring(HOLE), "exclusion"))))
    points = ring([(400, 300), (230, 130), (10, 10)])
    assert outlined.classes(points).tolist() == [NEITHER, TUMOUR, NORMAL]


def test_glass_is_left_out_and_a_tiny_lesion_is_not(tmp_path: Path) -> None:
    pixels = np.full((2048, 3072, 3), 245, np.uint8)
    pixels[512:1536, 512:1536] = (190, 90, 170)
    pixels[512:1536, 2048:2560] = (190, 90, 170)
    path = write_slide(tmp_path / "glass.tif", pixels)
    polygons = (Polygon(square(600, 600, 400)), Polygon(ring(TINY)))
    write_annotation(tmp_path / "glass.xml", Annotation(polygons))
    case = Case("g", "p", "slide", str(path), mpp=MPP, annotation=str(tmp_path / "glass.xml"))
    positions, notes = find_positions(case, TissueConfig(mpp=8.0))
    rng = np.random.default_rng(0)
    points = np.array([positions.draw(NORMAL, rng) for _ in range(300)])
    on = (points[:, 1] > 490) & (points[:, 1] < 1560)
    assert (on & (points[:, 0] > 490) & (points[:, 0] < 2590)).all()
    assert not notes
    assert not shapely.contains_xy(shapely.Polygon(TINY), *points.T).any()
    tumours = np.array([positions.draw(TUMOUR, rng) for _ in range(3000)])
    lesion, tiny = shapely.Polygon(square(600, 600, 400)), shapely.Polygon(TINY)
    in_tiny = shapely.contains_xy(tiny, *tumours.T)
    assert (in_tiny | shapely.contains_xy(lesion, *tumours.T)).all()
    # it counts as one cell of 16 px beside those of the large one and its border
    assert 0 < in_tiny.sum() < 20


def test_notes_state_why_slides_are_left_out(tmp_path: Path) -> None:
    partly = outlined_case(
        tmp_path, "partly", Polygon(square(100, 100, 300)), attributes={"exhaustive": "false"}
    )
    unknown = outlined_case(tmp_path, "unknown", label="tumor")
    broken = Case("broken", "p", "slide", str(tmp_path / "none.tif"), mpp=MPP, label="normal")
    clean = outlined_case(tmp_path, "clean", label="Normal")
    pool = gather(Cohort((partly, unknown, broken, clean)), None)
    assert [positions.case.id for positions in pool.slides] == ["partly", "unknown", "clean"]
    assert pool.usable(NORMAL) == [2]
    assert pool.usable(TUMOUR) == [0]
    notes = " ".join(pool.notes)
    assert "partly: not all its tumour is outlined" in notes
    assert "unknown: its label 'tumor' means that it contains tumour, but no annotation outlines" in notes
    assert "broken: left out" in notes
    with pytest.raises(ConfigError, match="no slide has normal tissue"):
        gather(Cohort((partly,)), None)
    gather(Cohort((partly,)), None, need=(TUMOUR,))


def test_mask_of_another_scale_covers_the_whole_slide(tmp_path: Path) -> None:
    """1 normal and 2 tumour at a quarter of the slide's 1100 × 700 px."""
    values = np.ones((175, 275), np.uint8)
    values[50:100, 60:160] = 2
    Image.fromarray(values).save(tmp_path / "mask.png")
    case = replace(outlined_case(tmp_path, "masked"), annotation=str(tmp_path / "mask.png"))
    positions, notes = find_positions(case, None)
    rng = np.random.default_rng(0)
    points = np.array([positions.draw(TUMOUR, rng) for _ in range(400)])
    np.testing.assert_allclose(points.min(axis=0), (240, 200), atol=10)
    np.testing.assert_allclose(points.max(axis=0), (640, 400), atol=10)
    assert not notes


def test_fully_excluded_tumour_has_no_positions(tmp_path: Path) -> None:
    covered = (Polygon(square(200, 200, 300)), Polygon(square(150, 150, 400), "exclusion"))
    positions, _ = find_positions(outlined_case(tmp_path, "covered", *covered), None)
    assert positions.count(TUMOUR) == 0
    assert positions.count(NORMAL) > 0


# -- the stream ---------------------------------------------------------------------------------------------


def test_the_stream_is_the_same_for_any_number_of_workers(pool: Pool) -> None:
    config = replace(CONFIG, augment=AugmentConfig())
    one, three = first_batches(pool, config, 6, workers=1), first_batches(pool, config, 6, workers=3, ahead=5)
    assert same(one, three)
    assert [samples.index for samples in one] == [0, 8, 16, 24, 32, 40]
    assert not same(one, first_batches(pool, config, 6, round_=1))


def test_spawned_processes_give_the_same_stream_and_load_no_torch(pool: Pool) -> None:
    with SampleStream(pool, CONFIG, 8, seed=5, processes=True) as stream:
        assert same(first_batches(pool, CONFIG, 2), list(islice(stream, 2)))
        assert stream._executor is not None
        assert not stream._executor.submit(eval, "'torch' in __import__('sys').modules").result()


def test_restored_stream_continues(pool: Pool) -> None:
    uninterrupted = first_batches(pool, CONFIG, 5)
    with SampleStream(pool, CONFIG, 8, seed=5) as stream:
        list(islice(stream, 2))
        state = stream.state()
    with SampleStream(pool, CONFIG, 8, seed=5, workers=2) as other:
        other.restore(state)
        assert same(uninterrupted[2:], list(islice(other, 3)))
    with SampleStream(pool, CONFIG, 8, seed=6) as wrong, pytest.raises(ConfigError):
        wrong.restore(state)


def test_ranks_and_micro_batches_divide_each_batch(pool: Pool) -> None:
    batches = first_batches(pool, CONFIG, 3)
    shares = [first_batches(pool, CONFIG, 3, share=(rank, 2)) for rank in range(2)]
    halves = [batch.divide(2) for batch in batches]
    for rank in range(2):
        assert same([pieces[rank] for pieces in halves], shares[rank])
        assert all(batch.labels.tolist() == [0, 1, 0, 1] for batch in shares[rank])
    assert [piece.index for piece in batches[1].divide(3)] == [8, 10, 13]
    assert np.array_equal(np.concatenate([piece.pixels for piece in batches[1].divide(3)]), batches[1].pixels)
    assert len(batches[0].divide(20)) == 8
    with pytest.raises(ConfigError, match="cannot be shared by 3"):
        first_batches(pool, CONFIG, 1, share=(0, 3))


def test_patches_are_the_pixels_around_the_position(pool: Pool) -> None:
    for samples in first_batches(pool, CONFIG, 3):
        for pixels, chosen in zip(samples.pixels, samples.draws, strict=True):
            with open_slide(pool.slides[chosen.slide].case.path or "") as slide:
                padded = np.pad(
                    slide.backend.read(0, slide.bounds, 1),
                    ((SIDE, SIDE), (SIDE, SIDE), (0, 0)),
                    constant_values=255,
                )
            x, y = round(chosen.l0_x - SIDE / 2) + SIDE, round(chosen.l0_y - SIDE / 2) + SIDE
            assert np.array_equal(pixels, padded[y : y + SIDE, x : x + SIDE])


@settings(max_examples=20)
@given(st.floats(0.1, 0.9))
def test_any_range_of_samples_has_the_share_of_tumour(share: float) -> None:
    labels = [label_of(index, share) for index in range(200)]
    for start in (0, 37, 150):
        assert abs(sum(labels[start : start + 50]) - 50 * share) <= 1


def test_slide_is_drawn_before_the_position(pool: Pool) -> None:
    draws = [chosen for samples in first_batches(pool, CONFIG, 40) for chosen in samples.draws]
    tumours = [chosen.slide for chosen in draws if chosen.label == TUMOUR]
    assert len(tumours) == len(draws) // 2
    assert np.bincount(tumours)[:2] / len(tumours) == pytest.approx([0.5, 0.5], abs=0.12)
    by_site = first_batches(pool, replace(CONFIG, by_site=True), 40)
    normal = [chosen.slide for samples in by_site for chosen in samples.draws if chosen.label == NORMAL]
    # slides 1 and 2 share a site: together they are half
    assert normal.count(0) / len(normal) == pytest.approx(0.5, abs=0.12)


def test_half_of_the_normal_patches_are_hard_and_stay_normal(pool: Pool) -> None:
    hard = pool.with_hard({0: ring([(195, 105)]), 2: ring([(50, 60), (900, 300)])})
    draws = [chosen for samples in first_batches(hard, CONFIG, 40) for chosen in samples.draws]
    normal = [chosen for chosen in draws if chosen.label == NORMAL]
    mined = [chosen for chosen in normal if chosen.hard]
    assert len(mined) / len(normal) == pytest.approx(0.5, abs=0.12)
    assert {chosen.slide for chosen in mined} == {0, 2}
    for chosen in mined:
        near = min(np.abs(hard.hard[chosen.slide] - (chosen.l0_x, chosen.l0_y)).max(axis=1))
        assert near <= CONFIG.hard_jitter
        point = np.array([[chosen.l0_x, chosen.l0_y]])
        assert pool.slides[chosen.slide].classes(point)[0] == NORMAL


def test_slide_that_becomes_unreadable_is_dropped_and_recorded(tmp_path: Path) -> None:
    cases = [outlined_case(tmp_path, f"n{i}", label="normal", seed=i) for i in range(2)]
    cases.append(outlined_case(tmp_path, "t", Polygon(square(100, 100, 300)), seed=3))
    pool = gather(Cohort(tuple(cases)), None)
    (tmp_path / "n0.tif").unlink()
    one, three = first_batches(pool, CONFIG, 5), first_batches(pool, CONFIG, 5, workers=3)
    assert same(one, three)
    assert {chosen.slide for samples in one for chosen in samples.draws if chosen.label == NORMAL} <= {1, 2}
    with SampleStream(pool, CONFIG, 8, seed=5) as stream:
        list(islice(stream, 4))
        assert "no such file" in stream.failures[0]
        state = stream.state()
        assert set(state["lost"]) == {"n0"}
    (tmp_path / "t.tif").unlink()
    with SampleStream(pool, CONFIG, 8, seed=5) as stream, pytest.raises(CaseError, match="none of the"):
        next(stream)


def test_fixed_positions_are_used_once_per_epoch_in_a_new_order(pool: Pool) -> None:
    points = np.array([[250.0 + 40 * k, 300.0] for k in range(5)] + [[600.0, 600.0], [90.0, 90.0]])
    fixed = FixedPositions(np.array([0, 0, 0, 0, 1, 2, 2]), np.array([1, 1, 1, 1, 1, 0, 0]), points)
    batches = first_batches(replace(pool, fixed=fixed), CONFIG, 6, size=7)
    orders = [[(draw.slide, draw.l0_x) for draw in samples.draws] for samples in batches]
    everything = sorted(zip(fixed.slides.tolist(), points[:, 0].tolist(), strict=True))
    assert all(sorted(order) == everything for order in orders)
    assert len({tuple(order) for order in orders}) == 6
    assert all(samples.labels.sum() == 5 for samples in batches)
    assert same(batches, first_batches(replace(pool, fixed=fixed), CONFIG, 6, size=7, workers=3))


def test_unreadable_fixed_position_is_replaced_by_one_of_its_class(pool: Pool) -> None:
    fixed = FixedPositions(
        np.array([0, 1, 2]), np.array([1, 1, 0]), np.array([[400.0, 200], [550, 350], [90, 90]])
    )
    with SampleStream(replace(pool, fixed=fixed), CONFIG, 3, seed=1) as stream:
        stream.failures = {0: "gone"}
        for samples in islice(stream, 4):
            assert sorted((draw.slide, draw.label) for draw in samples.draws) == [(1, 1), (1, 1), (2, 0)]
