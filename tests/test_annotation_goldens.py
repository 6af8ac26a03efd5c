"""Annotations compared with recorded reference numbers and with real files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from lobule.annotations import (
    Annotation,
    fill,
    inside,
    rasterise,
    read_annotation,
    write_annotation,
)
from lobule.geometry import Box


def read_text(path: Path, text: str) -> Annotation:
    path.write_text(text)
    return read_annotation(path)


def test_small_files_equal_the_reference(goldens: Path, tmp_path: Path) -> None:
    for name, case in json.loads((goldens / "camelyon16/annotations.json").read_text()).items():
        annotation = read_text(tmp_path / f"{name}.xml", case["xml"])
        write_annotation(tmp_path / f"{name}.json", annotation)
        written = json.loads((tmp_path / f"{name}.json").read_text())
        assert written["positive"] == case["ncrf_json"]["positive"]
        listed_polygons = [
            polygon for polygon in written["negative"] if polygon in case["ncrf_json"]["negative"]
        ]
        assert (
            listed_polygons == case["ncrf_json"]["negative"]
        )  # the converter dropped the group Exclusion, which Lobule writes
        assert len(written["negative"]) == len(annotation.of_kind("exclusion")) == 1
        ncrf = read_text(tmp_path / "n.json", json.dumps(case["ncrf_json"]))
        for query in case["point_queries"]:
            assert inside(ncrf.of_kind("tumour"), query["xy"])[0] == query["in_positive"]
            assert inside(ncrf.of_kind("exclusion"), query["xy"])[0] == query["in_negative"]


def test_pixel_counts_equal_the_reference(goldens: Path, kit: Path) -> None:
    cases = json.loads((goldens / "camelyon16/cases.json").read_text())
    masks = np.load(goldens / "camelyon16/masks.npz")
    done = 0
    for case in ("real_1", "real_2"):
        for slide in cases[case]["slides"]:
            if not slide.get("source"):
                continue
            path = kit / slide["source"].replace("camelyon16/NCRF/jsons", "camelyon16/annotations/ncrf")
            annotation = read_annotation(path)
            shape = masks[f"{case}/{slide['name']}/shape"]
            bits = masks[f"{case}/{slide['name']}/bits"]
            truth = np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
            x, y = slide["crop_origin_level5_xy"]
            box = Box(x, y, int(shape[1]), int(shape[0]))
            mask = rasterise(annotation, 32, box)
            assert mask.sum() == pytest.approx(slide["mask_pixels"], rel=0.003)
            assert (mask != truth).sum() <= 0.003 * truth.sum()
            positive = fill(annotation.of_kind("tumour"), 32, box)
            assert positive.sum() == pytest.approx(slide["mask_pixels_positive_only"], rel=0.003)
            done += 1
    assert done == 9


def test_parsers_agree_on_real_annotations(kit: Path) -> None:
    for path in sorted((kit / "camelyon16/annotations/asap").glob("*.xml")):
        (other,) = (kit / "camelyon16/annotations/ncrf").glob(f"*/{path.stem}.json")
        asap_, ncrf = read_annotation(path), read_annotation(other)
        for kind in ("tumour", "exclusion"):
            ours = [polygon.points.tolist() for polygon in asap_.of_kind(kind)]
            theirs = [polygon.points.tolist() for polygon in ncrf.of_kind(kind)]
            assert ours == theirs and (ours or kind == "exclusion")


def test_sampled_coordinates_lie_in_their_regions(kit: Path) -> None:
    for name, expected in (("tumor", 1.0), ("normal", 0.0)):
        slides: dict[str, list[tuple[int, int]]] = {}
        for line in (kit / f"camelyon16/coords/{name}_valid.txt").read_text().split():
            slide, x, y = line.split(",")
            slides.setdefault(slide, []).append((int(x), int(y)))
        for slide, points in slides.items():
            annotation = read_annotation(kit / f"camelyon16/annotations/ncrf/valid/{slide}.json")
            share = inside(annotation.of_kind("tumour"), points).mean()
            assert share == expected, slide


def test_the_largest_annotation_fills_in_seconds(kit: Path) -> None:
    started = time.process_time()
    annotation = read_annotation(kit / "camelyon16/annotations/ncrf/train/Tumor_011.json")
    assert sum(len(polygon.points) for polygon in annotation.polygons) == 38_850
    level5 = rasterise(annotation, 32, Box(0, 0, 97792 // 32, 221184 // 32))
    row, column = (int(values[len(values) // 2]) for values in np.nonzero(level5))
    window = rasterise(annotation, 1, Box(column * 32 - 1000, row * 32 - 1000, 2000, 2000))
    assert level5.sum() > 1000 and window[1016, 1016]
    assert time.process_time() - started < 6
