"""Annotations: reading and writing every format, and files that must be refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lobule.annotations import (
    Annotation,
    Polygon,
    fill,
    rasterise,
    read_annotation,
    read_class_mask,
    write_annotation,
)
from lobule.annotations.asap import read_asap, write_asap
from lobule.annotations.geojson import read_geojson, write_geojson
from lobule.annotations.outline import Kind, kind_of_group, written_group
from lobule.errors import AnnotationError, ConfigError, NotReadable, TooLarge
from lobule.geometry import Box, Size
from tests.shapes import SQUARE, STAR, mask_of


def asap(points: str, *, group: str = "Tumor", head: str = "", form: str = "Polygon") -> str:
    return (
        f'<?xml version="1.0"?>{head}<ASAP_Annotations><Annotations>'
        f'<Annotation Name="a" Type="{form}" PartOfGroup="{group}" Color="#F4FA58"><Coordinates>{points}'
        "</Coordinates></Annotation></Annotations><AnnotationGroups/></ASAP_Annotations>"
    )


def coordinates(*points: tuple[object, object]) -> str:
    return "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in enumerate(points))


TRIANGLE = coordinates((0, 0), (10, 0), (0, 10))


def read_text(tmp_path: Path, text: str, name: str = "a.xml", **options: object) -> Annotation:
    path = tmp_path / name
    path.write_text(text)
    return read_annotation(path, **options)  # type: ignore[arg-type]


# -- reading ------------------------------------------------------------------------------------------------


def test_asap_points_follow_their_order(tmp_path: Path) -> None:
    text = asap(
        '<Coordinate Order="2" X="0" Y="10.5"/><Coordinate Order="0" X="1" Y="2"/>'
        '<Coordinate Order="1" X="10" Y="0"/>'
    )
    (polygon,) = read_text(tmp_path, text).polygons
    assert polygon.points.tolist() == [[1, 2], [10, 0], [0, 10.5]]
    assert (polygon.kind, polygon.name, polygon.group) == ("tumour", "a", "Tumor")


@pytest.mark.parametrize(
    ("group", "kind"),
    [("_0", "tumour"), ("_1", "tumour"), ("Tumor", "tumour"), ("metastases", "tumour"), ("_2", "exclusion"),
     ("Exclusion", "exclusion"), ("None", "other"), ("Annotatie", "other")],
)  # fmt: skip
def test_groups_of_camelyon(tmp_path: Path, group: str, kind: str) -> None:
    annotation = read_text(tmp_path, asap(TRIANGLE, group=group))
    assert [polygon.kind for polygon in annotation.polygons] == [kind]
    assert any(group in warning for warning in annotation.warnings) == (kind == "other")


def test_groups_can_be_added_and_inherit_from_their_parent(tmp_path: Path) -> None:
    taught = read_text(tmp_path, asap(TRIANGLE, group="DCIS"), groups={"DCIS": "tumour"})
    assert taught.polygons[0].kind == "tumour" and not taught.warnings
    nested = asap(TRIANGLE, group="left").replace(
        "<AnnotationGroups/>",
        '<AnnotationGroups><Group Name="left" PartOfGroup="Tumor"/><Group Name="Tumor" PartOfGroup="left"/>'
        "</AnnotationGroups>",
    )
    assert read_text(tmp_path, nested).polygons[0].kind == "tumour"


def test_camelyon17_normal_is_cut_out_of_metastases(tmp_path: Path) -> None:
    one = asap(TRIANGLE, group="metastases")
    two = one.replace("</Annotations>", asap(TRIANGLE, group="normal").split("<Annotations>")[1], 1)
    two = two[: two.index("</ASAP_Annotations>") + len("</ASAP_Annotations>")]
    assert [polygon.kind for polygon in read_text(tmp_path, two).polygons] == ["tumour", "exclusion"]
    assert read_text(tmp_path, asap(TRIANGLE, group="normal")).polygons[0].kind == "normal"


def test_a_ring_that_crosses_itself_is_kept_and_recorded(tmp_path: Path) -> None:
    annotation = read_text(tmp_path, asap(coordinates(*map(tuple, STAR))))
    assert annotation.polygons[0].points.tolist() == STAR and "1 polygons cross" in annotation.warnings[0]


def test_shapes_without_area_are_left_out_with_a_warning(tmp_path: Path) -> None:
    dot = read_text(tmp_path, asap(coordinates((5, 5)), form="Dot"))
    assert not dot.polygons and "Dot" in dot.warnings[0]
    line = read_text(tmp_path, asap(coordinates((0, 0), (5, 5), (0, 0), (5, 5))))
    assert not line.polygons and "fewer than 3" in line.warnings[0]
    assert len(read_text(tmp_path, asap(TRIANGLE, form="Spline"))) == 1


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]>'
BAD_XML = {
    "decimal comma": (asap(coordinates(("1000,5", 1), (2, 2), (3, 9))), "decimal comma"),
    "not a number": (asap(coordinates(("left", 1), (2, 2), (3, 9))), "not a number"),
    "nan": (asap(coordinates(("nan", 1), (2, 2), (3, 9))), "not a number"),
    "underscore": (asap(coordinates(("1_0", 1), (2, 2), (3, 9))), "not a number"),
    "huge": (asap(coordinates(("1e300", 1), (2, 2), (3, 9))), "far beyond"),
    "no X": (asap('<Coordinate Order="0" Y="1"/>'), "without X"),
    "order": (asap('<Coordinate Order="first" X="0" Y="1"/>'), "Order"),
    "bomb": (asap(TRIANGLE, head=BOMB), "bomb"),
    "external": (asap(TRIANGLE, head='<!DOCTYPE a SYSTEM "file:///etc/passwd">'), "bomb"),
    "damaged": (asap(TRIANGLE)[:-30], "XML is damaged"),
    "other root": ("<html></html>", "not ASAP"),
}


@pytest.mark.parametrize("case", BAD_XML)
def test_bad_xml_is_refused_with_the_reason(tmp_path: Path, case: str) -> None:
    text, reason = BAD_XML[case]
    with pytest.raises(AnnotationError, match=reason) as caught:
        read_text(tmp_path, text)
    assert str(tmp_path / "a.xml") in str(caught.value)


BAD_JSON = {
    "text": "what",
    "number": "12",
    "empty object": "{}",
    "no features": '{"type": "FeatureCollection"}',
    "feature is a number": '{"type": "FeatureCollection", "features": [3]}',
    "no geometry": '{"type": "Feature", "properties": {}}',
    "rings are numbers": '{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [1, 2]}}',
    "points are words": '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[["a","b","c"]]}}',
    "points are ragged": '{"type":"Feature","geometry":{"type":"Polygon","coordinates":[[[1,2],[3],[4,5]]]}}',
    "vertices missing": '{"positive": [{"name": "a"}], "negative": []}',
    "positive is an object": '{"positive": {"a": 1}}',
    "infinite": '{"positive": [{"vertices": [[0, 0], [1, Infinity], [2, 2]]}]}',
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("case", BAD_JSON)
def test_bad_json_is_refused(tmp_path: Path, case: str) -> None:
    with pytest.raises(AnnotationError):
        read_text(tmp_path, BAD_JSON[case], "a.json")


def test_missing_empty_and_broken_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotReadable):
        read_annotation(tmp_path / "none.xml")
    with pytest.raises(NotReadable):
        read_annotation(tmp_path)
    with pytest.raises(AnnotationError, match="empty"):
        read_text(tmp_path, " \n")
    broken = tmp_path / "a.geojson.gz"
    broken.write_bytes(gzip.compress(b"{}" * 100)[:-12])
    with pytest.raises(AnnotationError, match="gzip"):
        read_annotation(broken)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with pytest.raises(AnnotationError, match="mask"):
        read_annotation(tmp_path / "a.png")
    monkeypatch.setattr("lobule.annotations.MAX_BYTES", 1000)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(b" " * 100_000))
    with pytest.raises(TooLarge):
        read_annotation(tmp_path / "bomb.gz")


def qupath(**changes: object) -> dict[str, object]:
    properties = {"objectType": "annotation", "name": "n", "classification": {"name": "Tumor"}} | changes
    geometry = {
        "type": "Polygon",
        "coordinates": [[*SQUARE, SQUARE[0]], [[10, 10], [20, 10], [20, 20], [10, 10]]],
    }
    return {"type": "Feature", "id": "1", "geometry": geometry, "properties": properties}


def test_geojson_of_qupath(tmp_path: Path) -> None:
    multi = qupath() | {"geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE], [STAR]]}}
    point = qupath() | {"geometry": {"type": "Point", "coordinates": [1, 1]}}
    features = [
        qupath(),
        multi,
        point,
        qupath(objectType="detection"),
        qupath(classification={"names": ["Tumor", "Positive"]}),
        qupath(classification={"name": "Tumor: Negative"}),
        qupath(classification=None),
    ]
    text = json.dumps({"type": "FeatureCollection", "features": features})
    annotation = read_text(tmp_path, text, "a.geojson", l0_offset=(1000, 2000))
    kinds = [polygon.kind for polygon in annotation.polygons]
    assert kinds == ["tumour"] * 5 + ["other"]
    assert annotation.polygons[0].points.tolist() == [[x + 1000, y + 2000] for x, y in SQUARE]
    assert annotation.polygons[0].holes[0].tolist() == [[1010, 2010], [1020, 2010], [1020, 2020]]
    assert any("Point" in warning for warning in annotation.warnings)
    assert any("detection" in warning for warning in annotation.warnings)
    old = read_text(tmp_path, json.dumps([qupath()]).replace("objectType", "object_type"), "b.json")
    assert len(old) == 1


# -- writing ------------------------------------------------------------------------------------------------

coordinate = st.floats(-1e6, 1e6, allow_nan=False)
ring = st.lists(st.tuples(coordinate, coordinate), min_size=3, max_size=8, unique=True)
words = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=8).map(str.strip)
polygon_ = st.builds(
    lambda ring, kind, name: Polygon(ring, kind, name or "a", {"tumour": "_0", "exclusion": "_2"}[kind]),
    ring, st.sampled_from(["tumour", "exclusion"]), words,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.lists(polygon_, min_size=1, max_size=4))
def test_asap_and_geojson_round_trip(polygons: list[Polygon]) -> None:
    annotation = Annotation(tuple(polygons))
    assert read_asap(write_asap(annotation), "a").polygons == annotation.polygons
    assert read_geojson(json.loads(write_geojson(annotation)), "a").polygons == annotation.polygons


@pytest.mark.parametrize("name", ["a.xml", "a.geojson", "a.geojson.gz", "a.json.gz"])
def test_file_is_written_atomically(tmp_path: Path, name: str) -> None:
    annotation = Annotation((Polygon(SQUARE, "tumour", "a", "" if "json.gz" in name else "Tumor"),))
    write_annotation(tmp_path / name, annotation)
    assert [p.points.tolist() for p in read_annotation(tmp_path / name).polygons] == [SQUARE]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_ncrf_rounds_half_to_even_and_keeps_exclusions(tmp_path: Path) -> None:
    points = [[1000.5, 2000.5], [1101.5, 2000.4999], [1101.5, 2100.51]]
    polygons = (Polygon(points, "exclusion", "e", "Exclusion"), Polygon(points, "tumour", "b", "_0"),
                Polygon(points, "tumour", "a", "Tumor"))  # fmt: skip
    write_annotation(tmp_path / "a.json", Annotation(polygons))
    written = json.loads((tmp_path / "a.json").read_text())
    assert [polygon["name"] for polygon in written["positive"]] == ["a", "b"]
    assert written["positive"][0]["vertices"] == [[1000, 2000], [1102, 2000], [1102, 2101]]
    again = read_annotation(tmp_path / "a.json")
    assert [polygon.kind for polygon in again.polygons] == ["tumour", "tumour", "exclusion"]


def test_ncrf_of_a_normal_slide_outlines_normal_tissue(tmp_path: Path) -> None:
    text = json.dumps({"positive": [], "negative": [{"name": "t", "vertices": SQUARE}]})
    annotation = read_text(tmp_path, text, "n.json")
    assert annotation.polygons[0].kind == "normal"
    assert not rasterise(annotation, 1, Box(0, 0, 100, 100)).any()
    write_annotation(tmp_path / "again.json", annotation)
    assert read_annotation(tmp_path / "again.json").polygons == annotation.polygons


def test_qupath_offset_and_colour_are_written(tmp_path: Path) -> None:
    annotation = Annotation((Polygon(SQUARE, "tumour", "n", "Tumor"),))
    write_annotation(tmp_path / "a.geojson", annotation, l0_offset=(30, 40))
    feature = json.loads((tmp_path / "a.geojson").read_text())["features"][0]
    assert feature["geometry"]["coordinates"][0][0] == [-30, -40]
    assert feature["geometry"]["coordinates"][0][0] == feature["geometry"]["coordinates"][0][-1]
    assert len(feature["properties"]["classification"]["color"]) == 3
    assert read_annotation(tmp_path / "a.geojson", l0_offset=(30, 40)).polygons == annotation.polygons


@pytest.mark.parametrize("name", ["a.xml", "a.json", "a.geojson"])
def test_holes_survive_every_format(tmp_path: Path, name: str) -> None:
    holes = ([[10, 10], [40, 12], [30, 47]], [[60, 60], [90, 60], [90, 90], [60, 91]])
    annotation = Annotation((Polygon(SQUARE, "tumour", "a", "Tumor", holes),))
    write_annotation(tmp_path / name, annotation)
    box = Box(-5, -5, 120, 120)
    mask = rasterise(annotation, 1, box)
    assert mask.sum() == 100 * 100 - mask_of(holes[0], 1, box).sum() - mask_of(holes[1], 1, box).sum()
    assert np.array_equal(rasterise(read_annotation(tmp_path / name), 1, box), mask)


def test_writing_needs_a_format(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        write_annotation(tmp_path / "a.txt", Annotation(()))
    with pytest.raises(ConfigError):
        write_annotation(tmp_path / "a.png", Annotation(()))


# -- masks --------------------------------------------------------------------------------------------------


def test_a_class_mask_and_its_outlines_are_the_same_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = rng.choice([0, 1, 2], (23, 31), p=[0.3, 0.3, 0.4]).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "m.png")
    annotation = read_annotation(tmp_path / "m.png", l0_size=Size(31 * 16 - 5, 23 * 16 - 3))
    mask_box = Box(0, 0, 31, 23)
    assert np.array_equal(rasterise(annotation, 16, mask_box), values == 2)
    assert np.array_equal(fill(annotation.of_kind("normal"), 16, mask_box), values == 1)
    assert all(shapely.Polygon(p.points, p.holes).is_valid for p in annotation.polygons)
    stored = read_class_mask(tmp_path / "m.png", Size(31 * 16, 23 * 16))
    assert np.array_equal(stored.values, values) and stored.step_x == 16


def test_masks_of_other_values_scales_and_shapes(tmp_path: Path) -> None:
    binary = np.zeros((10, 20), np.uint8)
    binary[2:5, 3:9] = 255
    Image.fromarray(binary).convert("1").save(tmp_path / "one.png")
    assert "read as normal" in read_annotation(tmp_path / "one.png").warnings[0]
    Image.fromarray(np.stack([binary] * 3, axis=2)).save(tmp_path / "rgb.tif")
    (polygon,) = read_annotation(tmp_path / "rgb.tif", l0_size=Size(50, 25)).polygons
    assert polygon.points.max(axis=0).tolist() == [22.5, 12.5] and polygon.kind == "tumour"
    Image.fromarray(binary // 255 * 7).save(tmp_path / "seven.png")
    assert read_annotation(tmp_path / "seven.png", classes={7: "tumour"}).polygons[0].kind == "tumour"
    assert "7" in read_annotation(tmp_path / "seven.png").warnings[0]
    with pytest.raises(AnnotationError, match="shape"):
        read_annotation(tmp_path / "rgb.tif", l0_size=Size(50, 50))
    colour = np.zeros((4, 4, 3), np.uint8)
    colour[0, 0] = 1, 2, 3
    Image.fromarray(colour).save(tmp_path / "colour.png")
    with pytest.raises(AnnotationError, match="colour"):
        read_annotation(tmp_path / "colour.png")


def test_large_mask_is_read_from_a_smaller_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [Image.fromarray(np.full((side, side), 2, np.uint8)) for side in (64, 16)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    assert read_class_mask(tmp_path / "m.tif", Size(64, 64)).step_x == 1
    monkeypatch.setattr("lobule.annotations.masks.MAX_MASK_PIXELS", 1000)
    assert read_class_mask(tmp_path / "m.tif", Size(64, 64)).step_x == 4
    monkeypatch.setattr("lobule.annotations.masks.MAX_MASK_PIXELS", 100)
    with pytest.raises(TooLarge):
        read_class_mask(tmp_path / "m.tif", Size(64, 64))


# -- reference numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "group", "expected"),
    [
        ("tumour", "Tumor", "tumour"),
        ("normal", "Tumor", "normal"),
        ("tumour", "", "tumour"),
        ("other", "x", "other"),
    ],
)
def test_group_is_written_only_if_it_means_the_kind_of_the_outline(
    kind: Kind, group: str, expected: str
) -> None:
    assert kind_of_group(written_group(Polygon(SQUARE, kind, "a", group))) == expected
