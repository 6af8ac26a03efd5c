"""Generated exams: same seed, same bytes; lesions where the truth says; files that other readers accept."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from lobule.mammograms.views import VIEWS, stored_pointing
from lobule.phantoms import _breast, _lesions
from lobule.phantoms.exams import (
    LABELS,
    ExamPhantom,
    cohort_phantom,
    lesions_of,
    render_exam,
    write_exams,
)

SMALL = {"height": 260, "width": 190}


@pytest.fixture(scope="module")
def sick():
    return render_exam(ExamPhantom(5, left_malignant=True, right_benign=True, **SMALL))


def test_the_same_seed_gives_the_same_pixels_and_another_seed_does_not(sick):
    again = render_exam(sick.phantom)
    other = render_exam(ExamPhantom(6, left_malignant=True, right_benign=True, **SMALL))
    for view in VIEWS:
        assert np.array_equal(sick.images[view], again.images[view])
        assert not np.array_equal(sick.images[view], other.images[view])


@pytest.mark.parametrize("flip", ["NO", "YES"])
def test_the_chest_wall_is_where_the_flip_says(flip):
    exam = render_exam(ExamPhantom(2, horizontal_flip=flip, marker=False, **SMALL))
    for view, image in exam.images.items():
        left, right = (image[:, :14] > 0).sum(), (image[:, -14:] > 0).sum()
        assert (left > right) == (stored_pointing(view, flip) == "right")
        assert image.max() <= 4095
        assert 0.15 < (image == 0).mean() < 0.8
        rows = np.flatnonzero((image > 0).any(axis=1))
        assert view.endswith("CC") == (rows[0] > 0), "an MLO view reaches the top edge, a CC view does not"


def test_background_is_exactly_zero_beyond_skin_and_marker(sick):
    from scipy import ndimage

    for view in VIEWS:
        image = sick.images[view]
        labels, count = ndimage.label(image > 0)
        sizes = np.bincount(labels.ravel())[1:]
        assert sizes.max() > 0.98 * (image > 0).sum(), "one breast, and a few letters"
        assert count > 1, "the marker's letters are apart from the breast"


def test_truth_outlines_lie_where_the_picture_differs_from_the_healthy_one(sick):
    healthy = render_exam(ExamPhantom(5, **SMALL))
    assert healthy.outlines == ()
    assert {(o.view, o.malignant) for o in sick.outlines} == {
        ("L-CC", True), ("L-MLO", True), ("R-CC", False), ("R-MLO", False),
    }  # fmt: skip
    for view in VIEWS:
        change = np.abs(sick.images[view].astype(int) - healthy.images[view]) > 100
        mask = sick.masks[view] > 0
        assert mask.sum() > 20
        assert (change & mask).sum() > 10
        assert not change[~_grown(mask, 22)].any(), "beyond the lesion and its spicules nothing changed"
        assert set(np.unique(sick.masks[view])) == {0, 2 if view[0] == "L" else 1}
        assert (sick.images[view][mask] > 0).all(), "lesions lie inside the breast"


def _grown(mask, by):
    from scipy import ndimage

    return ndimage.binary_dilation(mask, iterations=by)


def test_lesion_contrast_multiplies_the_brightness_that_a_lesion_adds():
    healthy = render_exam(ExamPhantom(5, **SMALL))

    def added(contrast):
        exam = render_exam(ExamPhantom(5, left_malignant=True, lesion_contrast=contrast, **SMALL))
        inside = exam.masks["L-CC"] > 0
        return (exam.images["L-CC"].astype(float) - healthy.images["L-CC"])[inside].mean()

    # Below the factor 1 nothing is clipped at white.
    assert added(1.0) == pytest.approx(2 * added(0.5), rel=0.05)


def test_malignant_lesions_can_be_limited_to_some_kinds():
    sides = {"left_malignant": True, "right_malignant": True, "left_benign": True, "right_benign": True}
    lesions = [
        lesion
        for seed in range(8)
        for side in "LR"
        for lesion in lesions_of(ExamPhantom(seed, malignant_kinds=("fine calcifications",), **sides), side)
    ]
    assert {lesion.kind for lesion in lesions if lesion.malignant} == {"fine calcifications"}
    assert len({lesion.kind for lesion in lesions if not lesion.malignant}) > 1


def test_both_views_show_a_lesion_at_the_same_distance_from_the_nipple_column():
    """The depth behind the nipple is one number for both views; the outline's columns must agree with it."""
    agreements = []
    for seed in range(4):
        phantom = ExamPhantom(seed, left_malignant=True, marker=False, **SMALL)
        exam = render_exam(phantom)
        (lesion,) = lesions_of(phantom, "L")
        kinds = {o.kind for o in exam.outlines}
        assert kinds == {lesion.kind}
        for outline in exam.outlines:
            image = exam.images[outline.view]
            nipple = np.flatnonzero((image > 0).any(axis=0))[-1]
            agreements.append(abs(outline.polygon[:, 1].mean() / nipple - (1 - lesion.behind_nipple)) < 0.06)
    assert np.mean(agreements) >= 0.75, "moved only where skin or muscle is too near"


def test_malignant_and_benign_lesions_differ_in_kind_only():
    rng = np.random.default_rng(0)
    draws = [(m, _lesions.Lesion.draw(rng, malignant=m)) for m in (False, True) for _ in range(200)]
    assert {lesion.kind for m, lesion in draws if m}.isdisjoint({lesion.kind for m, lesion in draws if not m})
    contrast = [lesion.contrast for _, lesion in draws]
    assert abs(roc_auc_score([m for m, _ in draws], contrast) - 0.5) < 0.1


def test_mean_brightness_does_not_tell_malignancy():
    labels, brightness = [], []
    for number in range(14):
        exam = render_exam(
            cohort_phantom(number, seed=1, malignant=0.5, benign=0.3, sites=2, size=(195, 142))
        )
        for side, name in (("L", "left"), ("R", "right")):
            image = exam.images[f"{side}-MLO"]
            labels.append(exam.phantom.labels()[f"{name}_malignant"])
            brightness.append(image[image > 0].mean())
    assert 0.25 < roc_auc_score(labels, brightness) < 0.75


def test_parenchyma_follows_a_power_law():
    noise = _breast.power_law(np.random.default_rng(0), (512, 512), 0.1, beta=3.0, longest_mm=1000)
    power = np.abs(np.fft.fft2(noise)) ** 2
    frequency = np.hypot(np.fft.fftfreq(512)[:, None], np.fft.fftfreq(512)[None, :])
    band = (frequency > 0.02) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert slope == pytest.approx(-3.0, abs=0.05)


def test_denser_classes_are_denser():
    means = []
    for density in "abcd":
        image = render_exam(ExamPhantom(9, density=density, marker=False, **SMALL)).images["L-CC"]
        means.append(image[image > 0].mean())
    assert means == sorted(means)


def test_geometry_scales_with_the_image():
    small = render_exam(ExamPhantom(5, 195, 142, marker=False)).images["L-CC"] > 0
    large = render_exam(ExamPhantom(5, 520, 380, marker=False)).images["L-CC"] > 0
    assert small.mean() == pytest.approx(large.mean(), rel=0.03)


def test_a_png_cohort_has_a_manifest_that_matches_its_truth(tmp_path):
    manifest = write_exams(tmp_path / "a", exams=5, seed=3, size=(195, 142), malignant=0.5)
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    assert [row["case"] for row in rows] == [f"exam000{number}" for number in range(5)]
    assert len({row["patient"] for row in rows}) == 5
    assert {row["split"] for row in rows} == {"train", "val", "test"}
    truth = json.loads((tmp_path / "a" / "truth.json").read_text())
    for row in rows:
        labels = {name: bool(int(row[name])) for name in LABELS}
        assert labels == truth[row["case"]]["labels"]
        outlined = {(o["view"][0], o["malignant"]) for o in truth[row["case"]]["lesions"]}
        assert outlined == {
            ("L" if name.startswith("left") else "R", name.endswith("malignant"))
            for name, has in labels.items()
            if has
        }
        for column in ("l_cc", "r_cc", "l_mlo", "r_mlo"):
            with Image.open(manifest.parent / row[column]) as image:
                assert (image.mode, image.size) == ("I;16", (142, 195))
    write_exams(tmp_path / "b", exams=5, seed=3, size=(195, 142), malignant=0.5, threads=3)
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")


def test_dicom_files_are_equal_for_equal_seeds_and_hold_the_same_pixels(tmp_path):
    pydicom = pytest.importorskip("pydicom")
    for name in ("a", "b"):
        write_exams(tmp_path / name, exams=1, seed=3, size=(195, 142), form="dicom")
    write_exams(tmp_path / "png", exams=1, seed=3, size=(195, 142))
    assert _hashes(tmp_path / "a") == _hashes(tmp_path / "b")
    for view in VIEWS:
        dataset = pydicom.dcmread(tmp_path / "a" / "images" / f"exam0000_{view}.dcm")
        with Image.open(tmp_path / "png" / "images" / f"exam0000_{view}.png") as image:
            assert np.array_equal(dataset.pixel_array, np.asarray(image))


def _hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
