"""Files of findings, read by software that is not ours: shapely, GeoPandas, pycocotools and ElementTree."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import numpy as np
import pytest
import shapely
from pycocotools.coco import COCO

from lobule.annotations import read_annotation
from lobule.errors import ConfigError, UsageError
from lobule.evaluation import read_submission
from lobule.exports import EXPORTS, ExportOptions, find_export
from lobule.exports.camelyon17 import stage_of
from lobule.exports.run import export_results
from lobule.findings import Finding
from lobule.reports.write import write_reports
from lobule.results import Results
from lobule.results.maps import MapWriter
from lobule.results.writing import write_findings
from lobule.reviews import Review, append_review
from lobule.testing.export import (
    BOUNDS,
    EMPTY,
    HOLE,
    SQUARES,
    STRANGE_NAME,
    known_findings,
    known_map,
    write_known_case,
    write_known_results,
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    results = write_known_results(tmp_path_factory.mktemp("vector"), incomplete_cases=False)
    append_review(results.path, "squares", "Grace", Review("accept", finding=0))
    append_review(results.path, "squares", "Grace", Review("relabel", finding=2, label="benign"))
    outline = ((700.0, 500.0), (800.0, 500.0), (800.0, 650.5))
    append_review(results.path, "squares", "Grace", Review("draw", label="tumour", polygon=outline))
    return results


def exported(results: Results, to: str, out: Path, **options: object) -> Path:
    export_results(results.path, to, out, options=ExportOptions(**options))
    return out


def rows_of(path: Path, names: list[str] | None = None) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, names))


def square(box, holes=()) -> shapely.Polygon:
    rings = [[(b.x, b.y), (b.right, b.y), (b.right, b.bottom), (b.x, b.bottom)] for b in (box, *holes)]
    return shapely.Polygon(rings[0], rings[1:])


EXPECTED = [square(SQUARES[0], [HOLE]), square(SQUARES[1]), square(SQUARES[2])]


def qupath_features(results: Results, out: Path, case: str = "squares", **options: object) -> list[dict]:
    document = json.loads(
        (exported(results, "qupath", out, **options) / f"{case}.geojson").read_text("utf-8")
    )
    assert document["type"] == "FeatureCollection"
    return document["features"]


def named(features: list[dict], start: str) -> list[dict]:
    return [feature for feature in features if feature["properties"].get("name", "").startswith(start)]


def test_qupath_coordinates_are_relative_to_the_bounds(results: Results, tmp_path: Path) -> None:
    findings = named(qupath_features(results, tmp_path), "Finding")
    for feature, expected in zip(findings, EXPECTED, strict=False):
        moved = shapely.transform(expected, lambda points: points - (BOUNDS.x, BOUNDS.y))
        assert shapely.geometry.shape(feature["geometry"]).equals(moved)
    assert findings[3]["geometry"] == {"type": "Point", "coordinates": [700 - BOUNDS.x, 400 - BOUNDS.y]}
    uncropped = named(qupath_features(results, tmp_path / "whole", uncropped=True), "Finding")
    assert shapely.geometry.shape(uncropped[0]["geometry"]).equals(EXPECTED[0])


def test_qupath_objects_keep_the_rules_of_its_reader(results: Results, tmp_path: Path) -> None:
    layers = ("findings", "tissue", "tiles", "reviews")
    features = qupath_features(results, tmp_path, layers=layers)
    assert len({feature["id"] for feature in features}) == len(features)
    kinds = {feature["properties"]["objectType"] for feature in features}
    assert kinds == {"annotation", "tile"}
    for feature in features:
        geometry, properties = feature["geometry"], feature["properties"]
        assert shapely.geometry.shape(geometry).is_valid
        for ring in geometry["coordinates"] if geometry["type"] == "Polygon" else []:
            assert ring[0] == ring[-1] and len(ring) >= 4
        if "classification" in properties:
            assert len(properties["classification"]["color"]) == 3
        for value in properties.get("measurements", {}).values():
            assert isinstance(value, int | float) or value == "NaN"
        for value in properties.get("metadata", {}).values():
            assert isinstance(value, str)
    frame = geopandas.read_file(tmp_path / "squares.geojson")
    assert len(frame) == len(features)


def test_qupath_tiles_are_the_scored_cells(results: Results, tmp_path: Path) -> None:
    features = qupath_features(results, tmp_path, layers=("tiles",), min_score=0.5)
    cells = shapely.union_all([shapely.geometry.shape(feature["geometry"]) for feature in features])
    expected = shapely.union_all([square(box) for box in SQUARES])
    assert cells.equals(shapely.transform(expected, lambda points: points - (BOUNDS.x, BOUNDS.y)))
    assert features[0]["properties"]["measurements"] == {"normal": pytest.approx(0.1), "tumour": 0.9}
    scored = known_map()[1] == 2
    assert len(qupath_features(results, tmp_path / "all", layers=("tiles",))) == scored.sum()


def test_qupath_has_tissue_and_reviews(results: Results, tmp_path: Path) -> None:
    features = qupath_features(results, tmp_path)
    (tissue,) = named(features, "Tissue")
    scored_or_failed = (known_map()[1] != 1).sum()
    assert shapely.geometry.shape(tissue["geometry"]).area == scored_or_failed * 32 * 32
    (outline,) = named(features, "Drawn by Grace")
    ring = np.array([[700, 500], [800, 500], [800, 650.5]]) - (BOUNDS.x, BOUNDS.y)
    assert shapely.geometry.shape(outline["geometry"]).equals(shapely.Polygon(ring))
    metadata = [feature["properties"].get("metadata", {}) for feature in named(features, "Finding")]
    assert metadata[0]["review"] == "Grace: accept" and metadata[2]["review"] == "Grace: relabel benign"


def test_nan_is_text_in_qupath_and_left_out_elsewhere(tmp_path: Path) -> None:
    results = write_known_results(tmp_path, [], incomplete_cases=False)
    write_known_case(results, "nan", [Finding(900, 900, float("nan")), Finding(5, 6, 0.5)])
    (first, _) = named(qupath_features(results, tmp_path / "q", "nan"), "Finding")
    assert first["properties"]["measurements"] == {"score": "NaN"}
    exported(results, "camelyon16", tmp_path / "c")
    assert (tmp_path / "c/detections/nan.csv").read_text() == "0.5,5,6\n"
    report = json.loads((tmp_path / "c/camelyon16.export.json").read_text())
    assert "1 findings outside the slide or without a score" in str(report["cases"][0]["notes"])
    assert json.loads((exported(results, "coco", tmp_path / "o") / "nan.json").read_text())["annotations"]
    assert json.loads((exported(results, "dsa", tmp_path / "d") / "nan.json").read_text())["elements"]


def test_every_format_accepts_scores_that_are_not_numbers(tmp_path: Path) -> None:
    """NaN in findings and in the map: every format writes the case without an error."""
    results = write_known_results(tmp_path, [], incomplete_cases=False)
    outlined = known_findings()
    findings = [*outlined, Finding(900, 900, float("nan")), replace(outlined[0], score=float("nan"))]
    write_known_case(results, "patient_001_node_0", findings)
    folder = results.case_folder("patient_001_node_0")
    info = folder.maps["tumour"].info
    scores, states = known_map()
    scores[1, 40, 40] = np.nan
    shutil.rmtree(folder.map_path("tumour"))
    writer = MapWriter(folder.map_path("tumour"), info)
    for chunk in info.chunks:
        block = info.chunk_cells(chunk)
        writer.write_chunk(chunk, scores[:, *block], states[block])
    for to in EXPORTS:
        export = find_export(to)
        if "slide" in export.kinds and (export.library is None or find_spec(export.library) is not None):
            options = ExportOptions(show_patients=to == "camelyon17")
            (record,) = export_results(results.path, to, tmp_path / to, options=options).records
            assert record.exported, (to, record)
    (record,) = write_reports(results.path, tmp_path / "report").records
    assert record.exported


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools with NumPy 2
def test_coco(results: Results, tmp_path: Path) -> None:
    coco = COCO(str(exported(results, "coco", tmp_path) / "squares.json"))
    annotations = coco.loadAnns(coco.getAnnIds())
    assert coco.dataset["images"][0]["width"] == 4096 and coco.cats[1]["name"] == "tumour"
    assert [a["area"] for a in annotations[:3]] == [shape.area for shape in EXPECTED]
    # The hole has a bridge to the outline, which the mask of pycocotools fills by the same rule.
    mask = coco.annToMask(annotations[1])
    rows, columns = np.nonzero(mask)
    box = SQUARES[1]
    assert mask.sum() == pytest.approx(box.width * box.height, rel=0.01)
    assert abs(columns.min() - box.x) <= 1 and abs(rows.max() + 1 - box.bottom) <= 1
    assert annotations[1]["bbox"] == [box.x, box.y, box.width, box.height]


def test_geoparquet(results: Results, tmp_path: Path) -> None:
    frame = geopandas.read_parquet(exported(results, "geoparquet", tmp_path) / "squares.parquet")
    assert [shape.equals(expected) for shape, expected in zip(frame.geometry, EXPECTED, strict=False)] == [
        True, True, True,
    ]  # fmt: skip
    assert frame.geometry[3].equals(shapely.Point(700, 400))
    assert list(frame.score) == [finding.score for finding in known_findings()]
    assert frame.review[0] == "Grace: accept" and frame.crs is None


def test_asap(results: Results, tmp_path: Path) -> None:
    root = ElementTree.parse(exported(results, "asap", tmp_path) / "squares.xml").getroot()
    annotations = root.findall("./Annotations/Annotation")
    groups = {group.get("Name") for group in root.findall("./AnnotationGroups/Group")}
    assert {annotation.get("PartOfGroup") for annotation in annotations} <= groups
    for annotation in annotations:
        orders = [int(one.get("Order")) for one in annotation.iter("Coordinate")]
        assert orders == list(range(len(orders)))
    assert [annotation.get("Type") for annotation in annotations] == [
        "Polygon", "Polygon", "Rectangle", "Dot", "Polygon",
    ]  # fmt: skip
    read = read_annotation(tmp_path / "squares.xml")
    assert shapely.Polygon(read.polygons[1].points).equals(EXPECTED[1])


def test_dsa(results: Results, tmp_path: Path) -> None:
    document = json.loads((exported(results, "dsa", tmp_path) / "squares.json").read_text())
    first, _, rectangle, point, _ = document["elements"]
    assert document["name"] and first["closed"] and len(first["holes"]) == 1
    assert first["points"][0] == [SQUARES[0].x, SQUARES[0].y, 0]
    assert rectangle["center"] == [SQUARES[2].x + 64, SQUARES[2].y + 64, 0] and rectangle["width"] == 128
    assert point["type"] == "point" and point["center"] == [700, 400, 0]


@pytest.mark.parametrize(("to", "suffix"), [("dsa", "json"), ("coco", "json"), ("asap", "xml")])
def test_corrected_annotations_come_back(results: Results, tmp_path: Path, to: str, suffix: str) -> None:
    annotation = read_annotation(exported(results, to, tmp_path) / f"squares.{suffix}")
    tumour = annotation.of_kind("tumour")
    points = np.array([[1200.5, 700.5], [1050.5, 750.5], [1700.5, 1300.5], [2600.5, 2000.5], [3000, 3000]])
    from lobule.annotations import inside

    assert inside(tumour, points).tolist() == [True, False, True, True, False]


def test_a_submission_to_camelyon16_is_read_by_the_evaluator(results: Results, tmp_path: Path) -> None:
    out = exported(results, "camelyon16", tmp_path)
    rows = [list(row.values()) for row in rows_of(out / "slides.csv", ["name", "score"])]
    assert rows == [[name, "0.875"] for name in ("squares", EMPTY, STRANGE_NAME)]
    assert (out / "detections" / "nothing found.csv").read_bytes() == b""
    lines = (out / "detections/squares.csv").read_text().splitlines()
    assert lines[3] == "0.25,700,400" and len(lines) == 4
    source = read_submission([out / "slides.csv", out / "detections"])
    assert source is not None


def test_a_submission_to_camelyon17(tmp_path: Path) -> None:
    results = write_known_results(tmp_path, [], incomplete_cases=False)
    macro = Finding(5, 5, 0.9, lesion_class="macro")
    micro, itc = Finding(5, 5, 0.9, lesion_class="micro"), Finding(5, 5, 0.9, lesion_class="itc")
    for node, findings in enumerate([[], [itc], [micro, itc], [macro]]):
        write_known_case(results, f"patient_017_node_{node}", findings)
    write_known_case(results, "patient_018_node_0", [itc])
    out = exported(results, "camelyon17", tmp_path / "out")
    assert (out / "submission.csv").read_text().splitlines() == [
        "patient,stage",
        "patient_017.zip,pN1",
        "patient_017_node_0.tif,negative",
        "patient_017_node_1.tif,itc",
        "patient_017_node_2.tif,micro",
        "patient_017_node_3.tif,macro",
        "patient_018.zip,pN0(i+)",
        "patient_018_node_0.tif,itc",
    ]


@pytest.mark.parametrize(
    ("classes", "stage"),
    [
        ([], "pN0"), (["negative"] * 5, "pN0"), (["itc", "negative"], "pN0(i+)"), (["micro", "itc"], "pN1mi"),
        (["macro", "negative"], "pN1"), (["macro", "micro", "micro"], "pN1"), (["macro"] * 4, "pN2"),
        (["macro", "micro", "micro", "micro"], "pN2"), (["micro"] * 5, "pN1mi"),
    ],
)  # fmt: skip
def test_stages_of_camelyon17(classes: list[str], stage: str) -> None:
    """The rules of the challenge's site."""
    assert stage_of(classes) == stage


def test_wsinfer(results: Results, tmp_path: Path) -> None:
    out = exported(results, "wsinfer", tmp_path)
    rows = rows_of(out / "model-outputs-csv/squares.csv")
    scores, states = known_map()
    assert len(rows) == (states == 2).sum()
    assert list(rows[0]) == ["minx", "miny", "width", "height", "prob_normal", "prob_tumour"]
    for row in rows[:: len(rows) // 50]:
        cell = int(row["miny"]) // 32, int(row["minx"]) // 32
        assert float(row["prob_tumour"]) == pytest.approx(scores[1][cell], abs=1e-6)
    shapes = json.loads((out / "model-outputs-geojson/squares.json").read_text())
    assert len(shapes["features"]) == len(rows)
    assert len(list(out.glob("run_metadata_*.json"))) == 1


def test_csv(results: Results, tmp_path: Path) -> None:
    out = exported(results, "csv", tmp_path)
    cases = rows_of(out / "cases.csv")
    assert [row["case"] for row in cases] == ["squares", EMPTY, STRANGE_NAME]
    assert cases[0]["findings"] == "4" and "patient" not in cases[0]
    rows = rows_of(out / "findings/squares.csv")
    assert rows[3]["x_um"] == "175.0" and rows[2]["box_width"] == "128"


def test_unknown_formats_cases_and_options_are_refused(results: Results, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'qupath'"):
        find_export("qpath")
    with pytest.raises(UsageError, match="Did you mean 'squares'"):
        export_results(results.path, "csv", tmp_path, cases=["square"])
    with pytest.raises(ConfigError, match="does not support the option source"):
        export_results(results.path, "csv", tmp_path, options=ExportOptions(source=tmp_path))
    with pytest.raises(ConfigError, match="no layer 'cells'"):
        export_results(results.path, "qupath", tmp_path, options=ExportOptions(layers=("cells",)))
    with pytest.raises(ConfigError, match="no map 'fine'"):
        export_results(results.path, "wsinfer", tmp_path, options=ExportOptions(map_name="fine"))
    with pytest.raises(UsageError, match="results folder itself"):
        export_results(results.path, "csv", results.path)


def test_a_damaged_map_fails_only_its_case(tmp_path: Path) -> None:
    results = write_known_results(tmp_path, ["a", "b"], incomplete_cases=False)
    chunk = next(iter((results.case_folder("a").map_path("tumour") / "score" / "c").rglob("0")))
    chunk = next(path for path in chunk.parent.rglob("*") if path.is_file())
    chunk.write_bytes(b"damaged")
    report = export_results(results.path, "wsinfer", tmp_path / "out")
    assert [record.exported for record in report.records] == [False, True] and report.failed == 1
    assert "damaged" in report.records[0].error


def test_findings_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lobule.exports.case as case_module

    monkeypatch.setattr(case_module, "ROWS_AT_ONCE", 7)
    results = write_known_results(tmp_path, ["many"], incomplete_cases=False)
    write_findings(results.case_folder("many").path, [Finding(i, 2 * i, i / 100) for i in range(100)])
    out = exported(results, "csv", tmp_path / "out")
    rows = rows_of(out / "findings/many.csv")
    assert [(int(row["number"]), int(row["l0_x"])) for row in rows] == [(i, i) for i in range(100)]
