"""Differences of results and of truth, colour profiles, labels, other exams and training cases."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image, ImageCms
from starlette.testclient import TestClient

from lobule.annotations import Polygon, rasterise, write_annotation
from lobule.annotations.outline import Annotation
from lobule.bundles import patient_hash, read_bundle
from lobule.cli.view import open_library
from lobule.cohort import Case, Cohort
from lobule.errors import UsageError
from lobule.geometry import Box
from lobule.phantoms._mammogram_dicom import dicom_dataset, write_dicom
from lobule.results import open_results
from lobule.server.app import ServerOptions, create_app
from lobule.server.library import Library, Source
from lobule.stitch import State
from tests.server.browsing import view_pixels, write_exam
from tests.server.support import (
    STRIDE,
    Scene,
    begin,
    build_scene,
    case_ids,
    client_of,
    squares,
    swapped_profile,
    write_case,
    write_jpeg_slide,
)


def client(
    *sources: Source, cohort: Cohort | None = None, options: ServerOptions | None = None
) -> TestClient:
    return TestClient(create_app(Library(sources, cohort), options), base_url="http://localhost")


def tile_of(answer) -> tuple[np.ndarray, np.ndarray]:
    assert answer.status_code == 200, answer.text
    _, width, height, low, high = struct.unpack_from("<4sHHff", answer.content)
    planes = np.frombuffer(answer.content, np.uint8, offset=16).reshape(2, height, width)
    return low + planes[0] / 255 * (high - low), planes[1]


@pytest.fixture
def two(tmp_path: Path) -> tuple[Scene, Path]:
    """The scene with a second result of another stride."""
    scene = build_scene(tmp_path)
    rng = np.random.default_rng(3)
    scores = rng.random((23, 28)).astype(np.float32)
    states = np.where(rng.random((23, 28)) < 0.1, State.FAILED, State.SCORED).astype(np.uint8)
    (tmp_path / "second").mkdir()
    second = begin(tmp_path / "second", ["one"])
    write_case(second, "one", scene.slide, scores, states, [], stride=40.0)
    return scene, second.path


def test_differences_are_those_of_the_stored_scores(two: tuple[Scene, Path]) -> None:
    scene, second = two
    with client(Source("a", scene.results), Source("b", open_results(second))) as http:
        rows = {(row["name"], row["source"]): row["id"] for row in http.get("/api/cases").json()}
        params = {"name": "tumour", "layer": 1, "level": 0, "column": 0, "row": 0, "other": rows["one", 1]}
        values, states = tile_of(http.get(f"/api/cases/{rows['one', 0]}/difference", params=params))
        assert (
            http.get(
                f"/api/cases/{rows['one', 0]}/difference", params={**params, "other": "0" * 24}
            ).status_code
            == 404
        )
        assert (
            http.get(
                f"/api/cases/{rows['one', 0]}/difference", params={**params, "other": "../x"}
            ).status_code
            == 422
        )
    mine = zarr.open_group(scene.root / "results/cases/one/maps/tumour", mode="r")
    theirs = zarr.open_group(second / "cases/one/maps/tumour", mode="r")
    row = np.minimum(((np.arange(57) + 0.5) * STRIDE // 40).astype(int), 22)
    column = np.minimum(((np.arange(69) + 0.5) * STRIDE // 40).astype(int), 27)
    expected = np.asarray(mine["score"])[1] - np.asarray(theirs["score"])[1][np.ix_(row, column)]
    both = (np.asarray(mine["state"]) == 2) & (np.asarray(theirs["state"])[np.ix_(row, column)] == 2)
    assert np.array_equal(states[1:-1, 1:-1] == State.SCORED, both)
    assert np.abs(values[1:-1, 1:-1] - expected)[both].max() <= 1.01 / 255 + 1e-6
    assert np.abs(values[1:-1, 1:-1][~both]).max() < 1e-6  # Exactly zero can be stored.


def test_reduced_differences_keep_the_largest_magnitude(tmp_path: Path) -> None:
    scores = np.full((300, 300), 0.5, np.float32)
    scores[10, 10], scores[200, 201] = 0.9, 0.05
    states = np.full((300, 300), State.SCORED, np.uint8)
    readers: list[Source] = []
    for name, values in (("a", scores), ("b", np.full((300, 300), 0.5, np.float32))):
        (tmp_path / name).mkdir()
        results = begin(tmp_path / name, ["one"])
        write_case(results, "one", None, values, states, [], chunk=(128, 128))
        readers.append(Source(name, open_results(results.path)))
    with client(*readers) as http:
        first, other = (row["id"] for row in http.get("/api/cases").json())
        params = {"name": "tumour", "layer": 1, "level": 1, "column": 0, "row": 0, "other": other}
        values, _ = tile_of(http.get(f"/api/cases/{first}/difference", params=params))
    inside = values[1:-1, 1:-1]
    assert inside[5, 5] == pytest.approx(0.4, abs=0.01) and inside[100, 100] == pytest.approx(-0.45, abs=0.01)
    inside[5, 5] = inside[100, 100] = 0
    assert np.abs(inside).max() < 1e-6


def test_the_truth_is_subtracted_where_it_is_outlined(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    ring = np.array([[100, 100], [500, 120], [460, 600], [90, 500]], float)
    truth = Annotation((Polygon(ring, "tumour", "", "Tumor"),))
    write_annotation(tmp_path / "truth.geojson", truth)
    row = Case("one", "p", "slide", path=str(scene.slide), annotation=str(tmp_path / "truth.geojson"))
    with client_of(scene.results, cohort=Cohort((row,))) as http:
        params = {"name": "tumour", "layer": 1, "level": 0, "column": 0, "row": 0, "other": "truth"}
        case = case_ids(http)["one"]
        values, states = tile_of(http.get(f"/api/cases/{case}/difference", params=params))
        other = case_ids(http)["two"]
        assert http.get(f"/api/cases/{other}/difference", params=params).status_code == 404
    scored = states[1:-1, 1:-1] == State.SCORED
    expected = scene.scores - rasterise(truth, STRIDE, Box(0, 0, 69, 57))
    assert np.abs(values[1:-1, 1:-1] - expected)[scored].max() <= 1.01 / 255 + 1e-6


def test_the_colour_table_is_that_of_the_profile(tmp_path: Path) -> None:
    data = swapped_profile()
    pixels = squares(700, 500)
    slide = write_jpeg_slide(tmp_path / "slide.tif", [pixels], profile=data)
    results = begin(tmp_path, ["a", "b"])
    plain = write_jpeg_slide(tmp_path / "plain.tif", [pixels])
    for name, path in (("a", slide), ("b", plain)):
        write_case(results, name, path, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    with client_of(results) as http:
        ids = case_ids(http)
        image = http.get(f"/api/cases/{ids['a']}").json()["images"]["slide"]
        assert image["profile"]["applied"] is True and image["profile"]["name"]
        table = np.frombuffer(http.get(f"/api/cases/{ids['a']}/colours").content, np.uint8).reshape(
            33, 33, 33, 3
        )
        assert http.get(f"/api/cases/{ids['b']}").json()["images"]["slide"]["profile"] is None
        assert http.get(f"/api/cases/{ids['b']}/colours").status_code == 404
        region = http.get(
            f"/api/cases/{ids['a']}/region", params={"x": 4, "y": 4, "width": 40, "height": 40, "side": 40}
        )
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(data)), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )
    for red, green, blue in ((0, 0, 0), (32, 0, 0), (5, 20, 15), (32, 32, 32)):
        stored = Image.new("RGB", (1, 1), tuple(round(255 * value / 32) for value in (red, green, blue)))
        expected = ImageCms.applyTransform(stored, transform).getpixel((0, 0))
        assert table[red, green, blue].tolist() == list(expected)
    shown = np.asarray(Image.open(io.BytesIO(region.content)).convert("RGB"))[20, 20]
    expected = ImageCms.applyTransform(Image.new("RGB", (1, 1), (40, 20, 120)), transform).getpixel((0, 0))
    assert np.abs(shown.astype(int) - expected).max() <= 8


def test_damaged_profiles_are_named_and_not_applied(tmp_path: Path) -> None:
    slide = write_jpeg_slide(tmp_path / "slide.tif", [squares(300, 300)], profile=b"x" * 500)
    results = begin(tmp_path, ["a"])
    write_case(results, "a", slide, np.zeros((4, 4), np.float32), np.full((4, 4), 2, np.uint8), [])
    with client_of(results) as http:
        case = case_ids(http)["a"]
        profile = http.get(f"/api/cases/{case}").json()["images"]["slide"]["profile"]
        assert profile == {"name": "a profile that cannot be used", "applied": False}
        assert http.get(f"/api/cases/{case}/colours").status_code == 404


def test_label_images_need_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lobule.geometry import Size
    from lobule.slides.tiff import TiffBackend

    scene = build_scene(tmp_path)
    monkeypatch.setattr(TiffBackend, "read_associated", lambda self, name: np.full((20, 30, 3), 99, np.uint8))
    original_init = TiffBackend.__init__

    def with_label(self, *arguments, **options) -> None:
        original_init(self, *arguments, **options)
        self.associated = {"label": Size(30, 20)}

    monkeypatch.setattr(TiffBackend, "__init__", with_label)
    for allowed in (False, True):
        with client_of(scene.results, options=ServerOptions(show_labels=allowed)) as http:
            case = case_ids(http)["one"]
            answer = http.get(f"/api/cases/{case}/label-image", params={"name": "label"})
            label_images = http.get(f"/api/cases/{case}").json()["images"]["slide"].get("label_images")
            assert (answer.status_code, label_images) == ((200, ["label"]) if allowed else (404, None))
            assert http.get(f"/api/cases/{case}/label-image", params={"name": "../x"}).status_code == 404


def test_other_exams_of_the_patient_are_listed_by_date(tmp_path: Path) -> None:
    folder = write_exam(tmp_path)
    shutil.copytree(folder / "results/cases/exam", folder / "results/cases/earlier")
    shutil.copytree(folder / "results/cases/exam", folder / "results/cases/stranger")
    cases = []
    for name, patient, date in (
        ("exam", "p", "2020-05-01"),
        ("earlier", "p", "2018-02-03"),
        ("stranger", "q", "2019-01-01"),
    ):
        views = {
            view.lower().replace("-", "_"): (str(folder / f"{view}.dcm"),)
            for view in ("L-CC", "R-CC", "L-MLO")
        }
        cases.append(Case(name, patient, "exam", views=views, attributes={"date": date}))
    source = Source("exams", open_results(folder / "results"))
    with client(source, cohort=Cohort(tuple(cases))) as http:
        ids = case_ids(http)
        detail = http.get(f"/api/cases/{ids['exam']}").json()
        assert detail["other_exams"] == [
            {"id": ids["earlier"], "name": "earlier", "date": "20180203", "relation": "prior"}
        ]
        assert http.get(f"/api/cases/{ids['earlier']}").json()["other_exams"][0]["relation"] == "later"
        assert http.get(f"/api/cases/{ids['stranger']}").json()["other_exams"] == []


def test_inverted_views_state_what_they_were_inverted_from(tmp_path: Path) -> None:
    folder = write_exam(tmp_path)
    dataset = dicom_dataset(
        4095 - view_pixels("L-CC"), "L-CC", 0.1, seed=0, patient="PHANTOM", horizontal_flip="NO"
    )
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.PresentationLUTShape = "INVERSE"
    write_dicom(folder / "L-CC.dcm", dataset)
    with client(Source("exams", open_results(folder / "results"))) as http:
        case = case_ids(http)["exam"]
        image = http.get(f"/api/cases/{case}").json()["images"]["L-CC"]
        shown = np.frombuffer(http.get(f"/api/cases/{case}/view", params={"name": "L-CC"}).content, "<u2")
    stored = dataset.pixel_array.ravel().astype(int)
    inside = shown > 0
    assert image["inverted_from"] == 2 ** int(dataset.BitsStored) - 1
    assert np.array_equal((image["inverted_from"] - shown.astype(int))[inside], stored[inside])


def test_the_training_cases_of_a_bundle_are_shown(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    manifest = tmp_path / "cohort.csv"
    lines = [f"{name},{name},train,normal,{scene.slide}" for name in ("a", "b", "c")]
    manifest.write_text("case,patient,split,label,slide\n" + "\n".join(lines) + "\n")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    model = {
        "format": "lobule-bundle/1", "method": "scannet", "config": {}, "classes": ["normal", "tumour"], "mpp": 0.5,
        "metrics": {}, "provenance": {"train_cases": ["a"], "val_cases": ["b"]}, "files": {},
        "patients": [patient_hash("a"), patient_hash("b")],
    }  # fmt: skip
    (bundle / "model.json").write_text(json.dumps(model))
    library = open_library([str(bundle)], str(manifest), None)
    assert [(entry.name, entry.row.split) for entry in library.entries()] == [("a", "train"), ("b", "train")]
    with pytest.raises(UsageError, match="paths of its training cases"):
        open_library([str(bundle)], None, None)
    model["patients"] = [patient_hash("x")]
    (bundle / "model.json").write_text(json.dumps(model))
    with pytest.raises(UsageError, match="none of the cases"):
        open_library([str(bundle)], str(manifest), None)


def test_the_calibration_of_a_named_bundle_is_shown(tmp_path: Path) -> None:
    scene = build_scene(tmp_path)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    model = {
        "format": "lobule-bundle/1", "method": "scannet", "config": {}, "classes": ["normal", "tumour"], "mpp": 0.5,
        "metrics": {}, "provenance": {}, "files": {}, "patients": [], "calibration": {"cells": {"slope": 1.25}},
    }  # fmt: skip
    (bundle / "model.json").write_text(json.dumps(model))
    paths = [str(scene.results.path)]
    with pytest.raises(UsageError, match="none of the results was produced by this bundle"):
        open_library(paths, None, None, [str(bundle)])
    fingerprint = read_bundle(bundle).fingerprint
    for file in scene.results.path.rglob("*.json"):
        file.write_text(file.read_text().replace("ab" * 32, fingerprint))
    for bundles, shown in (([], None), ([str(bundle)], {"cells": {"slope": 1.25}})):
        with TestClient(
            create_app(open_library(paths, None, None, bundles)), base_url="http://localhost"
        ) as http:
            detail = http.get(f"/api/cases/{case_ids(http)['one']}").json()
            assert detail["provenance"]["calibration"] == shown
