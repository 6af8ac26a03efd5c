"""Findings: suppression as in NCRF, regions and their exact outlines, and the features of a map."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops
from sklearn.svm import SVC

from lobule.findings import (
    HEATMAP_FEATURES,
    Finding,
    Outline,
    cell_centre,
    components,
    heatmap_features,
    lesion_class,
    longest_extent,
    mask_outlines,
    non_maximum_suppression,
    suppression_radius,
)
from lobule.geometry import Box
from lobule.measures.roc import auc
from lobule.units import Mpp


@pytest.fixture(scope="module")
def scannet(goldens: Path) -> dict:
    return json.loads((goldens / "scannet/goldens.json").read_text())


@pytest.fixture(scope="module")
def prob(goldens: Path) -> np.ndarray:
    return np.load(goldens / "scannet/prob.npz")["prob"]


# -- non-maximum suppression --------------------------------------------------------------------------------


def ncrf(xy_map: np.ndarray, radius: int, threshold: float, stride: int) -> list[tuple[float, int, int]]:
    """The published loop, on a map indexed [x, y]."""
    xy_map, detections = xy_map.copy(), []
    while xy_map.max() > threshold:
        i, j = np.unravel_index(xy_map.argmax(), xy_map.shape)
        detections.append((round(float(xy_map[i, j]), 5), int((i + 0.5) * stride), int((j + 0.5) * stride)))
        xy_map[max(0, i - radius) : i + radius, max(0, j - radius) : j + radius] = 0
    return detections


def score_and_position(findings: list[Finding]) -> list[tuple[float, int, int]]:
    return [(finding.score, finding.l0_x, finding.l0_y) for finding in findings]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.sampled_from([0.0, 0.3, 0.5]), st.booleans())
def test_suppression_equals_the_published_loop(seed: int, radius: int, threshold: float, ties: bool) -> None:
    scores = np.random.default_rng(seed).random((23, 31))
    scores = np.round(scores, 1) if ties else scores
    findings = non_maximum_suppression(scores, 16, radius=radius, threshold=threshold)
    assert score_and_position(findings) == ncrf(scores.T, radius, threshold, 16)


def test_suppression_goldens(scannet: dict, prob: np.ndarray) -> None:
    for case in scannet["nms"]:
        findings = non_maximum_suppression(
            prob, 2 ** case["level"], radius=case["radius"], threshold=case["threshold"]
        )
        assert [list(row) for row in score_and_position(findings)] == case["detections_p_x_y"]
    case = scannet["nms_ties"]
    ties = np.zeros(case["map_xy_shape"][::-1])
    for x, y, p in case["entries_x_y_p"]:
        ties[y, x] = p
    assert [list(row) for row in score_and_position(non_maximum_suppression(ties, 64))] == case[
        "detections_p_x_y"
    ]


def test_worked_example() -> None:
    scores = np.zeros((30, 40))
    for x, y, p in ((5, 7, 0.9), (20, 3, 0.9), (20, 15, 0.9), (32, 3, 0.9), (5, 19, 0.6)):
        scores[y, x] = p
    original = scores.copy()
    findings = score_and_position(non_maximum_suppression(scores, 64, radius=12))
    assert findings == [
        (0.9, 352, 480),
        (0.9, 1312, 224),
        (0.9, 1312, 992),
        (0.9, 2080, 224),
        (0.6, 352, 1248),
    ]
    assert np.array_equal(scores, original)


def test_the_radius_scales_with_the_stride() -> None:
    assert [suppression_radius(stride) for stride in (16, 32, 64, 128, 224, 4096)] == [48, 24, 12, 6, 3, 1]
    assert cell_centre(3, 5, 32) == (176, 112)


def test_suppression_ignores_cells_without_a_score() -> None:
    scores = np.full((20, 20), np.nan)
    assert non_maximum_suppression(scores, 64) == []
    scores[4, 6] = 0.7
    assert score_and_position(non_maximum_suppression(scores, 64)) == [(0.7, 416, 288)]
    for wrong in ({"radius": 0}, {"threshold": -0.1}):
        with pytest.raises(ValueError, match="radius"):
            non_maximum_suppression(scores, 64, **wrong)


def test_suppression_of_a_large_map_is_fast() -> None:
    scores = np.random.default_rng(0).random((2000, 2000), dtype=np.float32)
    findings = non_maximum_suppression(scores, 16)
    cells = np.array([(finding.l0_y // 16, finding.l0_x // 16) for finding in findings])
    apart = np.abs(cells[:200, None] - cells[None, :200]).max(axis=2) + 1000 * np.eye(200, dtype=int)
    assert len(findings) > 900 and apart.min() >= 48


# -- regions ------------------------------------------------------------------------------------------------


def test_component_goldens(scannet: dict, prob: np.ndarray) -> None:
    findings = components(prob, 64)
    got = [[round(f.score, 5), f.l0_x, f.l0_y, f.cells] for f in findings]
    assert got == scannet["components"]["detections_p_x_y_cells"]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_outlines_are_valid_and_cover_exactly_the_cells(seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((11, 13)) < share
    outlines, seeds = mask_outlines(mask)
    shapes = [shapely.Polygon(outline.exterior, outline.holes) for outline in outlines]
    assert all(shape.is_valid for shape in shapes)
    assert sum(outline.area for outline in outlines) == mask.sum() == shapely.union_all(shapes).area
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    inside = shapely.contains_xy(shapely.union_all(shapes), x.ravel(), y.ravel()).reshape(mask.shape)
    assert np.array_equal(inside, mask)
    assert len(outlines) == ndimage.label(mask)[1]
    for shape, (row, column) in zip(shapes, seeds, strict=True):
        assert shape.contains(shapely.Point(column + 0.5, row + 0.5))
    # The points are corners: none lies on the line between its neighbours.
    for outline in outlines:
        for ring in (outline.exterior, *outline.holes):
            step = np.roll(ring, -1, axis=0) - ring
            assert ((step == 0).sum(axis=1) == 1).all()


def test_regions_touching_by_a_corner_are_one_finding_of_two_outlines() -> None:
    scores = np.zeros((20, 20))
    scores[2:6, 2:6] = 0.6
    scores[6:8, 6:9] = 0.8
    scores[3, 3] = 0.1
    scores[15:17, 12] = 0.7
    first, second = components(scores, 32, mpp=Mpp(0.5, 0.25))
    assert (first.cells, first.score, len(first.polygon)) == (21, 0.8, 2)
    assert first.box == Box(64, 64, 7 * 32, 6 * 32)
    assert first.polygon[0].holes[0].tolist() == [[96, 96], [128, 96], [128, 128], [96, 128]] or (
        first.polygon[0].area == 15 * 32**2
    )
    assert first.area_um2 == pytest.approx(21 * 32**2 * 0.125)
    assert first.size_um == pytest.approx(np.hypot(7 * 16, 6 * 8)) and first.lesion_class == "itc"
    assert (second.l0_x, second.l0_y) == (12 * 32 + 16, 15 * 32 + 16)


def test_opening_removes_specks() -> None:
    scores = np.zeros((20, 20))
    scores[3:9, 3:9] = scores[15, 15] = 0.9
    assert [finding.cells for finding in components(scores, 64)] == [36, 1]
    assert [finding.cells for finding in components(scores, 64, opening=1)] == [36]
    assert components(scores, 64, threshold=0.95) == []


def test_lesion_classes_follow_the_largest_extent() -> None:
    assert [lesion_class(um) for um in (199.9, 200, 2000, 2000.1)] == ["itc", "micro", "micro", "macro"]
    cells = np.zeros((80, 80))
    cells[0, :70] = cells[5:7, 5:7] = 1
    bar, dot = components(cells, 128, mpp=Mpp.square(0.25))
    assert (bar.lesion_class, dot.lesion_class) == ("macro", "itc")
    assert bar.size_um == pytest.approx(np.hypot(70, 1) * 32)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=1, max_size=30))
def test_the_longest_extent(points: list) -> None:
    array = np.array(points, dtype=float)
    expected = max(np.hypot(*(a - b)) for a in array for b in array)
    assert longest_extent(array) == pytest.approx(expected)


def test_many_regions_keep_all_cells() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((300, 300)) * (rng.random((300, 300)) < 0.3)
    findings = components(scores, 32, mpp=Mpp.square(0.25))
    assert len(findings) > 3000 and sum(finding.cells or 0 for finding in findings) == (scores > 0.5).sum()
    assert (
        sum(outline.area for finding in findings for outline in finding.polygon)
        == (scores > 0.5).sum() * 32**2
    )
    assert max(finding.score for finding in findings) == scores.max()


def test_a_finding_survives_json() -> None:
    mask = np.zeros((6, 6))
    mask[1:5, 1:5] = 1
    mask[2, 2] = 0
    (finding,) = components(mask, 32, mpp=Mpp.square(0.5), label="tumour")
    plain = json.loads(json.dumps(finding.to_dict(), allow_nan=False))
    again = Finding.from_dict(plain)
    assert again.to_dict() == finding.to_dict() and again.box == finding.box
    assert isinstance(again.polygon[0], Outline) and again.polygon[0].area == 15 * 1024
    assert Finding(3, 4, 0.5).to_dict() == {"l0_x": 3, "l0_y": 4, "score": 0.5, "kind": "point"}


# -- the map as a whole -------------------------------------------------------------------------------------


def test_feature_goldens(scannet: dict, prob: np.ndarray) -> None:
    case = scannet["heatmap_features"]
    assert list(HEATMAP_FEATURES) == case["names"]
    top, bottom, left, right = case["tissue_box_rows_cols"]
    tissue = np.zeros(prob.shape, bool)
    tissue[top:bottom, left:right] = True
    assert heatmap_features(prob, tissue).tolist() == pytest.approx(case["values"], abs=0.01)
    eight_bit = np.floor(255 * prob).astype(np.uint8)
    assert np.array_equal(heatmap_features(eight_bit, tissue), heatmap_features(prob, tissue))


def test_features_of_a_plain_map() -> None:
    scores = np.zeros((40, 40), np.float32)
    tissue = np.ones((40, 40), bool)
    assert not heatmap_features(scores, tissue).any()
    scores[5:9, 5:9] = 0.95
    scores[20:26, 20:30] = 0.6
    features = dict(zip(HEATMAP_FEATURES, heatmap_features(scores, tissue), strict=True))
    assert (features["region_count"], features["pixels_gt_90"], features["avg_prediction"]) == (1, 16, 242)
    assert features["ratio_tumor_tissue"] == 0.01 and features["largest_tumor_area"] == 60
    assert features["longest_axis_largest_tumor"] == pytest.approx(4 * np.sqrt((10**2 - 1) / 12), abs=0.01)
    assert (features["area_skew"], features["area_kurt"], features["extent_skew"]) == (0, -3, 0)
    assert features["max_perimeter"] == 12 and features["max_extent"] == 1 and features["mean_solidity"] == 1
    without_tissue = heatmap_features(scores, np.zeros_like(tissue))
    assert without_tissue[HEATMAP_FEATURES.index("ratio_tumor_tissue")] == 0


def test_repeated_shapes_have_the_same_measures_as_single_regions() -> None:
    rng = np.random.default_rng(3)
    values = np.where(rng.random((60, 60)) < 0.25, 250, 0).astype(np.uint8)
    features = dict(zip(HEATMAP_FEATURES, heatmap_features(values, np.ones((60, 60), bool)), strict=True))
    regions = regionprops(ndimage.label(values, np.ones((3, 3)))[0])
    for name, values_ in (("eccentricity", [r.eccentricity for r in regions]),
                          ("solidity", [r.solidity for r in regions]),
                          ("perimeter", [r.perimeter for r in regions])):  # fmt: skip
        assert features[f"mean_{name}"] == pytest.approx(np.mean(values_), abs=0.006)
        assert features[f"{name}_variance"] == pytest.approx(np.var(values_), abs=0.006)


TEST_TUMOURS = [
    1, 2, 4, 8, 10, 11, 13, 16, 21, 26, 27, 29, 30, 33, 38, 40, 46, 48, 49, 51, 52, 61, 64, 65, 66, 68, 69,
    71, 73, 74, 75, 79, 82, 84, 90, 92, 94, 97, 99, 102, 104, 105, 108, 110, 113, 114, 116, 117, 121, 122,
]  # fmt: skip
"""Numbers of the slides with metastases among Test_001 to Test_130."""


def test_the_published_classifier_on_published_features(kit: Path) -> None:
    def table(name: str) -> list[dict[str, str]]:
        with (kit / f"camelyon16/heatmap_features/{name}.csv").open() as file:
            return list(csv.DictReader(file))

    train, test = table("heatmap_features_train_all_model8"), table("heatmap_features_test")
    assert tuple(test[0]) == HEATMAP_FEATURES
    columns = HEATMAP_FEATURES[6:]
    x, x_test = ([[float(row[name]) for name in columns] for row in rows] for rows in (train, test))
    fit = SVC(kernel="linear", C=1.5, max_iter=2_000_000).fit(x, [int(row["label"]) for row in train])
    labels = np.isin(np.arange(1, 131), TEST_TUMOURS)
    assert auc(labels, fit.decision_function(x_test)) == pytest.approx(0.92575, abs=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([2, 5, 1000]))
@settings(max_examples=30, deadline=None)
def test_the_point_of_a_region_is_its_first_cell_with_the_highest_score(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = (rng.integers(0, levels, (23, 31)) / levels).astype(np.float32)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    regions, count = ndimage.label(scores > 0.4, np.ones((3, 3)))
    findings = components(scores, 10, threshold=0.4)
    assert len(findings) == count
    for number, finding in enumerate(findings, 1):
        inside = np.where(regions == number, scores, -1)
        row, column = np.unravel_index(int(inside.argmax()), scores.shape)
        assert (finding.l0_x, finding.l0_y) == (10 * column + 5, 10 * row + 5)
        assert finding.score == float(scores[row, column])
