"""Generated cohorts: manifests that read back, patients on one side, truth files that say what was drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from lobule.annotations import read_annotation
from lobule.cohort import read_cohort
from lobule.errors import ConfigError
from lobule.layouts import read_layout
from lobule.phantoms.cohorts import members, write_slide_cohort
from lobule.phantoms.images import CLASSES, image, write_images
from lobule.phantoms.slides import SlidePhantom

LIKE = SlidePhantom(0, 1000, 900, 1.0, tissue=0.5)


@pytest.mark.parametrize("layout", ["folder", "camelyon16"])
def test_a_cohort_reads_back(layout: str, tmp_path: Path) -> None:
    manifest = write_slide_cohort(
        tmp_path, slides=4, sites=1, like=LIKE, lesions=[(0, 1, 1)], layout=layout, split=(0.5, 0.0, 0.5)
    )
    cohort = read_cohort(manifest)
    assert sorted(case.label or "" for case in cohort) == ["normal", "normal", "tumor", "tumor"]
    for case in cohort:
        assert case.mpp == 1.0
        assert (case.annotation is not None) == (case.label == "tumor")
    case = next(case for case in cohort if case.label == "tumor")
    annotation = read_annotation(str(case.annotation))
    assert [polygon.kind for polygon in annotation.polygons] == ["tumour", "tumour"]
    geo = read_annotation(str(Path(str(case.annotation)).with_suffix(".geojson")))
    for one, other in zip(annotation.polygons, geo.polygons, strict=True):
        np.testing.assert_allclose(one.points, other.points, atol=0.01)
    if layout == "camelyon16":
        labels = {one.id: one.label for one in read_layout("camelyon16", tmp_path)}
        assert labels == {one.id: one.label for one in cohort}
        mask_file = Path(str(case.annotation)).parents[1] / "masks" / f"{case.id}_Mask.tif"
        mask = tifffile.imread(mask_file, level=0)
        assert set(np.unique(mask)) == {0, 255}
        tumour = mask == 255
    else:
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{case.id}.png"))
        assert set(np.unique(mask)) == {0, 1, 2}
        tumour = mask == 2
    assert tumour.shape == (900, 1000)
    total = 0.0
    for polygon in annotation.polygons:
        x, y = polygon.points.T
        total += abs(float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))) / 2
    assert tumour.sum() == pytest.approx(total, rel=0.02)


def test_camelyon16_without_a_test_slide_reads_back(tmp_path: Path) -> None:
    manifest = write_slide_cohort(
        tmp_path, slides=1, sites=1, normal=1.0, like=LIKE, layout="camelyon16", split=(1.0, 0.0, 0.0)
    )
    assert (tmp_path / "testing" / "reference.csv").read_text() == ""
    assert [one.id for one in read_layout("camelyon16", tmp_path)] == [
        one.id for one in read_cohort(manifest)
    ]


def test_the_usual_lesions_are_those_that_fit(tmp_path: Path) -> None:
    tiny = SlidePhantom(0, 400, 400, 1.0, tissue=0.3)
    manifest = write_slide_cohort(tmp_path / "tiny", slides=4, normal=0.0, sites=1, like=tiny)
    for case in read_cohort(manifest):
        description = json.loads((tmp_path / "tiny" / "lesions" / f"{case.id}.json").read_text())
        assert {one["class"] for one in description["lesions"]} <= {"micro", "itc"}
        assert description["lesions"]
    with pytest.raises(ConfigError, match=r"no room for a lesion of class 'macro'.*or for itc instead"):
        write_slide_cohort(tmp_path / "asked", slides=1, normal=0.0, sites=1, like=tiny, lesions=[(1, 0, 0)])


@pytest.mark.parametrize("patients", [None, 7, 20])
@pytest.mark.parametrize("unseen", [False, True])
def test_a_patient_has_one_split_and_one_site(patients: int | None, unseen: bool) -> None:
    people = members(
        40, normal=0.5, patients=patients, sites=3, split=(0.6, 0.2, 0.2), seed=3, unseen_site=unseen
    )
    assert sum(one.positive for one in people) == 20
    for key in ("split", "site"):
        values_of_patient: dict[str, set[str]] = {}
        for one in people:
            values_of_patient.setdefault(one.patient, set()).add(getattr(one, key))
        assert all(len(values) == 1 for values in values_of_patient.values())
    assert {one.split for one in people} == {"train", "val", "test"}
    assert {one.site for one in people} == {"site-0", "site-1", "site-2"}
    if unseen:
        assert {one.site for one in people if one.split == "test"} == {"site-2"}
        assert "site-2" not in {one.site for one in people if one.split != "test"}


def test_images_read_back_and_lie_as_bach_does(tmp_path: Path) -> None:
    manifest = write_images(tmp_path, 2, size=(300, 200), mpp=1.0, seed=4, split=(1, 0, 0))
    cohort = read_cohort(manifest)
    assert len(cohort) == 8
    for case in cohort:
        prefix, folder, _ = CLASSES[str(case.label)]
        assert Path(str(case.path)).parent.name == folder
        assert case.id.rstrip("0123456789") == prefix
        assert tifffile.imread(str(case.path)).shape == (200, 300, 3)
    bach = {Path(str(case.path)).name: case.label for case in read_layout("bach", tmp_path)}
    assert bach == {Path(str(case.path)).name: case.label for case in cohort}


def test_an_image_is_its_seed() -> None:
    one = image("benign", seed=5, size=(300, 200), mpp=1.0)
    np.testing.assert_array_equal(one, image("benign", seed=5, size=(300, 200), mpp=1.0))
    assert np.abs(one.astype(int) - image("benign", seed=6, size=(300, 200), mpp=1.0)).mean() > 10
    with pytest.raises(ConfigError, match="no class"):
        image("odd", seed=1)
