"""Masks of tumour slides: 255, 2 or 1 means tumour, in evaluations and in trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.cohort import Case
from lobule.errors import AnnotationError
from lobule.evaluation import Options
from lobule.evaluation.sources import CaseResult
from lobule.evaluation.truth import read_truth
from lobule.geometry import Size
from lobule.training.patch_sampling import TUMOUR, find_positions
from tests.scanning.support import pixels_of, write_slide


def masked_case(folder: Path, *, tumour: int, normal: int) -> Case:
    """A slide of 1280 × 640 px whose mask at 1/32 has tumour in columns 5 to 14 and rows 4 to 7."""
    values = np.zeros((20, 40), np.uint8)
    values[2:18, 2:38] = normal
    values[4:8, 5:15] = tumour
    Image.fromarray(values).save(folder / "tumor_001_evaluation_mask.png")
    slide = write_slide(folder / "tumor_001.tif", pixels_of(1280, 640))
    mask = str(folder / "tumor_001_evaluation_mask.png")
    return Case("tumor_001", "p", "slide", str(slide), mpp=0.243, label="tumor", annotation=mask)


VALUES = [(255, 0), (2, 1), (1, 0), (2, 0), (255, 1)]


@pytest.mark.parametrize(("tumour", "normal"), VALUES)
def test_lesions_of_a_mask_with_any_value(tumour: int, normal: int, tmp_path: Path) -> None:
    case = masked_case(tmp_path, tumour=tumour, normal=normal)
    result = CaseResult("complete", size=Size(1280, 640))
    truth = read_truth(case, result, True, Options(lesion_scale="official"))
    assert not isinstance(truth, str)
    assert truth.mask is not None
    np.testing.assert_allclose(truth.mask.centroids, [[5.5, 9.5]])


@pytest.mark.parametrize(("tumour", "normal"), VALUES)
def test_tumour_is_sampled_from_a_mask_with_any_value(tumour: int, normal: int, tmp_path: Path) -> None:
    positions, _ = find_positions(masked_case(tmp_path, tumour=tumour, normal=normal), None)
    rng = np.random.default_rng(0)
    points = np.array([positions.draw(TUMOUR, rng) for _ in range(200)])
    np.testing.assert_allclose(points.min(axis=0), (160, 128), atol=20)
    np.testing.assert_allclose(points.max(axis=0), (480, 256), atol=20)


def test_a_mask_without_a_known_value_is_refused(tmp_path: Path) -> None:
    case = masked_case(tmp_path, tumour=7, normal=3)
    result = CaseResult("complete", size=Size(1280, 640))
    with pytest.raises(AnnotationError, match="no tumour value"):
        read_truth(case, result, True, Options(lesion_scale="official"))
    with pytest.raises(AnnotationError, match="no tumour outline"):
        find_positions(replace(case, label="tumor"), None)


def normal_and_tumour(folder: Path, mask_tumour: str, label: str | None) -> Case:
    """A case whose mask has both values, 2 in the rectangle of `masked_case` and 1 around it."""
    case = masked_case(folder, tumour=2, normal=1)
    return replace(case, label=label, attributes={"mask_tumour": mask_tumour})


@pytest.mark.parametrize(("mask_tumour", "cells"), [("2", 40), ("2.0", 40), ("1", 16 * 36 - 40)])
def test_the_manifest_states_which_of_two_values_is_tumour(
    mask_tumour: str, cells: int, tmp_path: Path
) -> None:
    """The cloud bucket writes tumour as 2; ASAP's script for Camelyon17 writes it as 1 and normal as 2."""
    case = normal_and_tumour(tmp_path, mask_tumour, "tumor")
    truth = read_truth(
        case, CaseResult("complete", size=Size(1280, 640)), True, Options(lesion_scale="official")
    )
    assert not isinstance(truth, str) and truth.mask is not None
    # The official script dilates lesions by 4.8 cells and fills their holes.
    (tmp_path / "alone").mkdir()
    alone = masked_case(
        tmp_path / "alone", tumour=255 if mask_tumour != "1" else 0, normal=0 if mask_tumour != "1" else 255
    )
    expected = read_truth(
        alone, CaseResult("complete", size=Size(1280, 640)), True, Options(lesion_scale="official")
    )
    assert not isinstance(expected, str) and expected.mask is not None
    assert (truth.mask.labels > 0).sum() == (expected.mask.labels > 0).sum() > cells
    positions, _ = find_positions(case, None)
    points = np.array([positions.draw(TUMOUR, np.random.default_rng(seed)) for seed in range(100)])
    inside = ((points > (160, 128)) & (points < (480, 256))).all(axis=1)
    assert inside.mean() > 0.9 if mask_tumour != "1" else inside.mean() < 0.2


def test_a_mask_of_normal_tissue_alone_shows_no_tumour_if_the_manifest_says_so(tmp_path: Path) -> None:
    """Without `mask_tumour`, 1 as the only value means tumour, as in masks of Camelyon16's test slides."""
    case = replace(masked_case(tmp_path, tumour=1, normal=1), label=None, attributes={"mask_tumour": "2"})
    truth = read_truth(
        case, CaseResult("complete", size=Size(1280, 640)), None, Options(lesion_scale="official")
    )
    assert not isinstance(truth, str) and truth.mask is not None
    assert truth.mask.lesions == 0 and "no tumour" in truth.notes[-1]
    without = replace(case, attributes={})
    truth = read_truth(
        without, CaseResult("complete", size=Size(1280, 640)), None, Options(lesion_scale="official")
    )
    assert not isinstance(truth, str) and truth.mask is not None and truth.mask.lesions == 1


@pytest.mark.parametrize("cell", ["tumour", "0", "256", "1.5"])
def test_a_mask_value_that_cannot_occur_is_refused(cell: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="mask_tumour"):
        find_positions(normal_and_tumour(tmp_path, cell, "tumor"), None)
