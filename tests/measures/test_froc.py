"""Camelyon16 FROC: the official numbers to the last digit, worked examples, and intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label as sk_label
from skimage.measure import regionprops

from lobule.errors import AnnotationError, CaseError
from lobule.measures.camelyon16 import (
    FALSE_POSITIVE_RATES,
    SlideMatch,
    bootstrap_froc,
    froc,
    froc_resamples,
    jama_froc,
    match,
    sensitivity_by_class,
    slide_auc,
)
from lobule.measures.estimate import Resampling
from lobule.measures.lesion_masks import ITC_LIMIT, EvaluationMask, evaluation_mask

CASES = ("synthetic_1", "synthetic_2", "synthetic_3", "real_1", "real_2")


def matches_of(case: dict, masks: dict, name: str) -> list[SlideMatch]:
    matches = []
    for slide in case["slides"]:
        mask = None
        if slide["has_mask"]:
            shape = masks[f"{name}/{slide['name']}/shape"]
            bits = masks[f"{name}/{slide['name']}/bits"]
            mask = evaluation_mask(np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool))
        matches.append(match(slide["name"], slide["detections"], mask))
    return matches


@pytest.mark.parametrize("name", CASES)
def test_official_scores_are_reproduced(goldens: Path, name: str) -> None:
    case = json.loads((goldens / "camelyon16/cases.json").read_text())[name]
    masks = np.load(goldens / "camelyon16/masks.npz")
    matches, expected = matches_of(case, masks, name), case["expected"]
    for one in matches:
        slide = expected["per_slide"][one.name]
        assert one.false_positives.tolist() == slide["fp_probs"]
        assert one.true_positives.tolist() == slide["tp_probs_float32"]
        assert one.lesions == slide["num_tumors"]
        detections = next(s["detections"] for s in case["slides"] if s["name"] == one.name)
        for key, best in slide.get("detection_summary", {}).items():
            index = one.best_detections[int(key.split()[1]) - 1]
            assert best == ([] if index is None else detections[index])
    curve = froc(matches)
    assert curve.sensitivity is not None
    assert curve.false_positives.tolist() == pytest.approx(expected["total_FPs"], abs=1e-12)
    assert curve.sensitivity.tolist() == pytest.approx(expected["total_sensitivity"], abs=1e-12)
    assert curve.score == pytest.approx(expected["froc_score"], abs=1e-12)
    jama = jama_froc(matches)
    assert jama.score == pytest.approx(expected["jama_variant"]["score"], abs=1e-12)
    for rate in FALSE_POSITIVE_RATES:
        assert curve.sensitivity_at[rate] == pytest.approx(expected["sensitivity_at"][f"{rate:g}"], abs=1e-12)
        at = expected["jama_variant"]["sensitivity_at"][f"{rate:g}"]
        assert jama.sensitivity_at[rate] == pytest.approx(at, abs=1e-12)
    assert slide_auc(matches) == pytest.approx(expected["slide_auc"]["auc"], abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_official_lesion_labels_are_reproduced(goldens: Path, name: str) -> None:
    case = json.loads((goldens / "camelyon16/cases.json").read_text())[name]
    masks = np.load(goldens / "camelyon16/masks.npz")
    for slide in case["slides"]:
        if not slide["has_mask"]:
            continue
        shape = masks[f"{name}/{slide['name']}/shape"]
        bits = masks[f"{name}/{slide['name']}/bits"]
        mask = evaluation_mask(np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool))
        labels = case["expected"]["per_slide"][slide["name"]]["labels"]
        assert mask.areas.tolist() == [entry["area"] for entry in labels]
        assert mask.itc.tolist() == [entry["itc"] for entry in labels]
        assert mask.major_axes.tolist() == pytest.approx([e["major_axis_length"] for e in labels], abs=1e-4)
        assert mask.centroids.tolist() == [pytest.approx(entry["centroid_rc"], abs=1e-4) for entry in labels]


def disc(radius: int, side: int = 60) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - side // 2
    return x**2 + y**2 <= radius**2


def test_mask_of_worked_examples() -> None:
    point = np.zeros((40, 60), bool)
    point[20, 30] = True
    mask = evaluation_mask(point)
    assert mask.areas.tolist() == [69] and mask.major_axes[0] == pytest.approx(9.3375, abs=1e-4)
    for position, lesions in (((20, 39), 1), ((20, 40), 2), ((27, 37), 1), ((28, 38), 2)):
        two = point.copy()
        two[position] = True
        assert len(evaluation_mask(two).areas) == lesions
    for radius, axis, itc in ((13, 34.765, True), (14, 36.692, False)):
        mask = evaluation_mask(disc(radius))
        assert mask.major_axes[0] == pytest.approx(axis, abs=1e-3) and mask.itc[0] == itc
    for length, axis in ((20, 30.941), (27, 38.993)):
        line = np.zeros((30, 60), bool)
        line[15, 10 : 10 + length] = True
        assert evaluation_mask(line).major_axes[0] == pytest.approx(axis, abs=1e-3)
    assert abs(ITC_LIMIT - 35.365226337) < 1e-9


def full(mask: EvaluationMask) -> np.ndarray:
    """The labels of the whole image."""
    labels = np.zeros(mask.shape, np.int32)
    height, width = mask.labels.shape
    labels[mask.row : mask.row + height, mask.column : mask.column + width] = mask.labels
    return labels


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.9, 0.999))
def test_mask_equals_distance_transform(seed: int, sparsity: float) -> None:
    tumour = np.random.default_rng(seed).random((50, 70)) > sparsity
    mask = evaluation_mask(tumour)
    if not tumour.any():
        assert mask.lesions == 0 and not full(mask).any()
        return
    near = ndimage.distance_transform_edt(~tumour) < 75 / (0.243 * 32 * 2)
    expected = sk_label(ndimage.binary_fill_holes(near), connectivity=2)
    assert np.array_equal(full(mask), expected)
    axes = [region.axis_major_length for region in regionprops(expected)]
    # regionprops adds the variance within a pixel (1/12) to each variance.
    assert mask.major_axes.tolist() == pytest.approx(axes, rel=1e-9)


def test_masks_without_tumour_values_are_rejected() -> None:
    assert evaluation_mask(disc(9).astype(np.uint8) * 255).lesions == 0
    assert len(evaluation_mask(disc(9).astype(np.uint8) * 255).areas) == 1
    with pytest.raises(AnnotationError, match="255"):
        evaluation_mask(disc(9).astype(np.uint8))
    grey = disc(9).astype(np.uint8) * 255
    grey[0, 0] = 254
    assert len(evaluation_mask(grey).areas) == 1


@pytest.mark.parametrize("detection", [[0.5, -1, 5], [0.5, 60 * 32, 5], [0.5, 5, 60 * 32], [0.5, 1.5, 5]])
def test_detections_outside_the_image_are_rejected(detection: list[float]) -> None:
    with pytest.raises(CaseError, match="Tumor_001"):
        match("Tumor_001", [detection], evaluation_mask(disc(14)))


def test_hits_on_isolated_tumour_cells_are_ignored() -> None:
    one = match("Tumor_001", [[0.9, 30 * 32, 30 * 32], [0.4, 0, 0]], evaluation_mask(disc(9)))
    assert one.true_positives.tolist() == [0] and one.false_positives.tolist() == [0.4] and one.lesions == 0
    curve = froc([one])
    assert curve.score is None and curve.reason == "no lesions in the evaluated slides"
    assert sensitivity_by_class([one])["itc"]["sensitivity_at"]["8"] == 1.0


def test_float32_rounding_of_thresholds_follows_the_official_script() -> None:
    # 0.2 rounds up to float32, so its threshold passes the lesion alone; 0.9 rounds down and ties
    lesion = evaluation_mask(disc(14))
    for confidence, pairs in (
        (0.2, [(1.0, 1.0), (0.0, 1.0), (0.0, 0.0)]),
        (0.9, [(1.0, 1.0), (1.0, 1.0), (0.0, 0.0)]),
    ):
        slides = [
            match("Tumor_001", [[confidence, 30 * 32, 30 * 32]], lesion),
            match("Normal_001", [[confidence, 5, 5], [0.1, 5, 5]], None),
        ]
        curve = froc(slides)
        assert curve.sensitivity is not None
        assert list(zip(curve.false_positives * 2, curve.sensitivity, strict=True)) == pairs


def naive_froc(slides: list[SlideMatch]) -> float:
    """The official script, line by line."""
    fps = [value for one in slides for value in one.false_positives.tolist()]
    tps = np.concatenate([one.true_positives for one in slides])
    thresholds = sorted({*fps, *tps.astype(float).tolist()})[1:]
    fp = [sum(value >= t for value in fps) for t in thresholds] + [0]
    tp = [int((tps >= np.float32(t)).sum()) for t in thresholds] + [0]
    lesions = sum(one.lesions for one in slides)
    fp_rate, sensitivity = np.array(fp) / len(slides), np.array(tp) / lesions
    return float(np.mean(np.interp(FALSE_POSITIVE_RATES, fp_rate[::-1], sensitivity[::-1])))


def cohort(slides: int, seed: int, detections: int = 40) -> list[SlideMatch]:
    rng = np.random.default_rng(seed)
    lesion = evaluation_mask(np.pad(disc(14), ((0, 0), (0, 60))) | np.pad(disc(16), ((0, 0), (60, 0))))
    matches = []
    for index in range(slides):
        positions = rng.integers(0, 60 * 32, (rng.integers(0, detections), 2)) * (2, 1)
        confidence = np.round(rng.random(len(positions)) ** 2, 2)
        tumour = index % 2 == 0
        matches.append(
            match(f"{index}", np.column_stack([confidence, positions]), lesion if tumour else None)
        )
    return matches


def test_weighted_counts_equal_the_curve_of_repeated_slides() -> None:
    slides = cohort(12, 4, detections=6)
    resampling = Resampling(resamples=40, seed=3)
    weights = np.concatenate(list(resampling.weights(np.arange(12))))

    resamples = froc_resamples(slides, np.arange(12), resampling)
    for row, value in zip(weights.astype(int), resamples, strict=True):
        again = [one for one, times in zip(slides, row, strict=True) for _ in range(times)]
        assert value == pytest.approx(naive_froc(again), abs=1e-12)


def test_scores_are_sorted_once_for_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorting in every resample would make an interval a hundred times slower."""
    sorted_arrays: list[int] = []
    argsort = np.argsort

    def counted_argsort(values: np.ndarray, **options: Any) -> np.ndarray:
        sorted_arrays.append(len(values))
        return argsort(values, **options)

    monkeypatch.setattr(np, "argsort", counted_argsort)
    slides = cohort(12, 4, detections=6)
    froc_resamples(slides, np.arange(12), Resampling(10))
    few = len(sorted_arrays)
    froc_resamples(slides, np.arange(12), Resampling(200))
    assert few > 0 and len(sorted_arrays) == 2 * few


def test_interval_contains_the_score() -> None:
    slides = cohort(130, 1)
    estimate = bootstrap_froc(slides, resampling=Resampling(2000, seed=1))
    assert estimate.value == pytest.approx(naive_froc(slides), abs=1e-12)
    assert estimate.low is not None and estimate.high is not None and estimate.resamples == 2000
    assert 0.02 < estimate.high - estimate.low < 0.4 and estimate.low < estimate.value < estimate.high
    assert estimate == bootstrap_froc(slides, resampling=Resampling(2000, seed=1))


def test_false_positives_without_any_lesion_are_counted_per_slide() -> None:
    slides = [match(f"Normal_{i}", [[0.9, 5, 5], [0.4, 9, 9]], None) for i in range(4)]
    curve = froc(slides)
    assert curve.sensitivity is None and curve.slides == 4
    assert set(curve.false_positives.tolist()) == {0.0, 1.0}


def test_resampling_patients_widens_the_interval() -> None:
    slides = cohort(40, 2) * 3
    patients = list(range(40)) * 3
    resampling = Resampling(300)
    alone, together = bootstrap_froc(slides, None, resampling), bootstrap_froc(slides, patients, resampling)
    assert together.high - together.low > 1.3 * (alone.high - alone.low)


def test_sensitivities_of_classes_average_to_the_overall_sensitivity() -> None:
    big = evaluation_mask(np.pad(disc(14), ((0, 240), (0, 300))) | np.pad(disc(140, 300), ((0, 0), (60, 0))))
    assert [big.lesion_classes().count(name) for name in ("micro", "macro")] == [1, 1]
    rng = np.random.default_rng(0)
    slides = [
        match(str(i), np.column_stack([rng.random(30), rng.integers(0, 300 * 32, (30, 2))]), big)
        for i in range(6)
    ]
    by_class, curve = sensitivity_by_class(slides), froc(slides)
    for rate in FALSE_POSITIVE_RATES:
        mean = (
            sum(
                by_class[name]["lesions"] * by_class[name]["sensitivity_at"][f"{rate:g}"]
                for name in ("macro", "micro")
            )
            / 12
        )
        assert mean == pytest.approx(curve.sensitivity_at[rate], abs=1e-12)
    assert by_class["itc"]["lesions"] == 0 and by_class["itc"]["sensitivity_at"]["1"] is None


def test_froc_can_be_written_as_json() -> None:
    text = json.dumps([froc(cohort(4, 0)).to_dict(), jama_froc(cohort(1, 0)).to_dict()], allow_nan=False)
    assert '"no normal slides"' in text
