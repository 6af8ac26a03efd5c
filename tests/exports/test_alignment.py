"""Squares of a slide with bounds are in place after export and import, within half a pixel of level 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from PIL import Image

from lobule.annotations import Annotation, inside, read_annotation
from lobule.annotations.importing import import_annotations
from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import AnnotationError, ConfigError, UsageError
from lobule.exports import ExportOptions
from lobule.exports.run import export_results
from lobule.results import Results
from lobule.slides.slide import Slide
from lobule.testing.export import BOUNDS, MPP, SIZE, SQUARES, known_map, write_known_results

CASE = "Fälle 1"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return write_known_results(tmp_path_factory.mktemp("alignment"), [CASE], incomplete_cases=False)


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    """A cohort with a slide that declares bounds, as MRXS slides do."""
    Image.new("L", SIZE, 255).save(tmp_path / "slide.png")
    monkeypatch.setattr(Slide, "bounds", property(lambda self: BOUNDS))
    return Cohort((Case(CASE, "patient", "slide", str(tmp_path / "slide.png"), mpp=MPP, label="tumour"),))


def assert_in_place(annotation: Annotation) -> None:
    """The points half a pixel inside the edges are inside, those half a pixel outside are not."""
    polygons = annotation.of_kind("tumour")
    for box in SQUARES:
        middle_x, middle_y = box.x + 100, box.y + 100
        within = [[box.x + 0.5, middle_y], [box.right - 0.5, middle_y], [middle_x, box.y + 0.5],
                  [middle_x, box.bottom - 0.5]]  # fmt: skip
        beyond = [[box.x - 0.5, middle_y], [box.right + 0.5, middle_y], [middle_x, box.y - 0.5],
                  [middle_x, box.bottom + 0.5]]  # fmt: skip
        assert inside(polygons, within).all() and not inside(polygons, beyond).any(), box


@pytest.mark.parametrize("to", ["qupath", "dicom-seg", "dicom-ann", "dsa", "coco", "asap"])
def test_annotations_return_to_a_cohort(results: Results, cohort: Cohort, tmp_path: Path, to: str) -> None:
    export_results(results.path, to, tmp_path / "exported")
    report = import_annotations(cohort, tmp_path / "exported", tmp_path / "imported")
    assert report["imported"] == [CASE]
    (case,) = read_cohort(report["manifest"])
    assert case.annotation is not None and case.label == "tumour"
    assert_in_place(read_annotation(case.annotation))


def test_uncropped_geojson_is_not_moved(results: Results, cohort: Cohort, tmp_path: Path) -> None:
    export_results(results.path, "qupath", tmp_path / "exported", options=ExportOptions(uncropped=True))
    report = import_annotations(cohort, tmp_path / "exported", tmp_path / "imported", uncropped=True)
    assert_in_place(read_annotation(read_cohort(report["manifest"]).cases[0].annotation))


def test_what_cannot_be_imported(cohort: Cohort, tmp_path: Path) -> None:
    folder = tmp_path / "corrected"
    with pytest.raises(UsageError, match="there is no such folder"):
        import_annotations(cohort, folder, tmp_path / "out")
    folder.mkdir()
    with pytest.raises(UsageError, match="no annotation of a case"):
        import_annotations(cohort, folder, tmp_path / "out")
    (folder / "Fälle 1.json").write_text('{"images": [{"id": 1}], "annotations": [{"image_id": 1}]}')
    with pytest.raises(AnnotationError, match="COCO file is damaged"):
        import_annotations(cohort, folder, tmp_path / "out")
    (folder / "Fälle 1.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(UsageError, match="several annotations"):
        import_annotations(cohort, folder, tmp_path / "out")
    with pytest.raises(ConfigError, match="'cancer' is not a kind"):
        import_annotations(cohort, folder, tmp_path / "out", groups={"Invasive": "cancer"})


def test_coco_files_of_several_images_need_a_name(tmp_path: Path) -> None:
    ring = [10, 10, 20, 10, 20, 20, 10, 20]
    document = {
        "images": [{"id": 1, "file_name": "a.tif"}, {"id": 2, "file_name": "b.tif"}],
        "categories": [{"id": 7, "name": "Tumor"}],
        "annotations": [
            {"image_id": 2, "category_id": 7, "segmentation": [ring]},
            {"image_id": 2, "category_id": 7, "segmentation": {"counts": [1], "size": [1, 1]}},
            {"image_id": 1, "category_id": 7, "segmentation": [], "bbox": [0, 0, 5, 5]},
        ],
    }
    (tmp_path / "all.json").write_text(json.dumps(document))
    with pytest.raises(AnnotationError, match="2 images"):
        read_annotation(tmp_path / "all.json")
    annotation = read_annotation(tmp_path / "all.json", image="b")
    assert len(annotation) == 1 and "RLE" in annotation.warnings[0]
    assert read_annotation(tmp_path / "all.json", image="a").polygons[0].points.max() == 5


def test_rotated_rectangles_of_dsa(tmp_path: Path) -> None:
    """A rotation by a quarter turn exchanges width and height."""
    element = {"type": "rectangle", "center": [100, 50, 0], "width": 40, "height": 20, "group": "Tumor"}
    document = [{"annotation": {"name": "x", "elements": [{**element, "rotation": np.pi / 2}]}}]
    (tmp_path / "dsa.json").write_text(json.dumps(document))
    (polygon,) = read_annotation(tmp_path / "dsa.json").polygons
    assert polygon.points.min(axis=0) == pytest.approx([90, 30])
    assert polygon.points.max(axis=0) == pytest.approx([110, 70]) and polygon.kind == "tumour"


# -- OME-Zarr -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_ome_zarr_places_cells_in_um(results: Results, tmp_path: Path, version: str) -> None:
    export_results(results.path, "ome-zarr", tmp_path / "out", options=ExportOptions(ngff=version))
    (path,) = (tmp_path / "out").glob("*.ome.zarr")
    group: Any = zarr.open_group(str(path), mode="r", zarr_format=3 if version == "0.5" else 2)
    metadata: Any = dict(group.attrs["ome"]) if version == "0.5" else dict(group.attrs)
    (multiscale,) = metadata["multiscales"]
    assert [axis["name"] for axis in multiscale["axes"]] == ["c", "y", "x"]
    assert multiscale["axes"][1] == {"name": "y", "type": "space", "unit": "micrometer"}
    assert metadata["version"] == "0.5" if version == "0.5" else multiscale["version"] == "0.4"
    level = multiscale["datasets"][0]
    scale, translation = (list(one.values())[1] for one in level["coordinateTransformations"])
    scores = group[level["path"]][:]
    assert group[level["path"]].chunks == (1, *scores.shape[1:]) and scores.dtype == np.float32
    rows, columns = np.nonzero(scores[1] > 0.5)
    for axis, cells in ((1, rows), (2, columns)):
        # Coordinates are pixel centres: level-0 pixel p has its centre at p · µm/px.
        first_um, last_um = (cells.min() * scale[axis] + translation[axis]), (cells.max() * scale[axis])
        corner = (first_um - scale[axis] / 2) / MPP + 0.5
        end = (last_um + translation[axis] + scale[axis] / 2) / MPP + 0.5
        edges = [(box.y, box.bottom) if axis == 1 else (box.x, box.right) for box in SQUARES]
        assert abs(corner - min(low for low, _ in edges)) < 0.5
        assert abs(end - max(high for _, high in edges)) < 0.5
    expected, states = known_map()
    assert np.array_equal(scores, np.where(states == 2, expected, np.nan), equal_nan=True)
    assert np.array_equal(group["labels/state/0"][:], states)


def test_coarser_levels_of_ome_zarr(results: Results, tmp_path: Path, monkeypatch) -> None:
    import lobule.exports.ome_zarr as ome_zarr

    monkeypatch.setattr(ome_zarr, "SMALLEST", 40)
    monkeypatch.setattr(ome_zarr, "BLOCK", 48)
    export_results(results.path, "ome-zarr", tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.ome.zarr")
    group: Any = zarr.open_group(str(path), mode="r")
    levels = group.attrs["ome"]["multiscales"][0]["datasets"]
    first = np.nan_to_num(group["0"][:], nan=-1)
    for level, factor in zip(levels, (1, 2, 4), strict=True):
        blocks = first.reshape(2, 96 // factor, factor, 128 // factor, factor).max(axis=(2, 4))
        assert np.array_equal(np.nan_to_num(group[level["path"]][:], nan=-1), blocks)
        scale, translation = (list(one.values())[1] for one in level["coordinateTransformations"])
        assert scale[2] == 32 * factor * MPP and translation[2] == (32 * factor - 1) / 2 * MPP
