"""Small synthetic exams: half a disc as breast, with a bright square if malignant and a ring if benign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cohort import Case, Cohort
from lobule.mammograms.views import VIEWS
from lobule.nets.four_view import TARGETS

HEIGHT, WIDTH = 112, 80
REACH = 9


def exam(
    folder: Path, number: int, split: str | None, *, seed: int = 0, without: tuple[str, ...] = ()
) -> Case:
    """Write one exam with its labels, its outlines and BI-RADS columns derived from the labels."""
    rng = np.random.default_rng([seed, number])
    # The bits of the number give the four labels, so that a few exams contain every kind.
    labels = {name: bool((number >> bit) & 1) for bit, name in enumerate(TARGETS)}
    name, views, polygons = f"e{number:03d}", {}, []
    for view in VIEWS:
        if view in without:
            continue
        side = "left" if view[0] == "L" else "right"
        pixels = breast(rng)
        for grade in ("benign", "malignant"):
            if labels[f"{side}_{grade}"]:
                row, column = int(rng.integers(38, 74)), int(rng.integers(12, 34))
                draw(pixels, row, column, grade)
                x = column if side == "left" else WIDTH - column
                corners = [(-REACH, -REACH), (REACH, -REACH), (REACH, REACH), (-REACH, REACH)]
                ring = np.array([(x + dx, row + dy) for dx, dy in corners], np.float64)
                polygons.append(Polygon(ring, "other", view, grade))
        pixels = pixels if side == "left" else pixels[:, ::-1]
        path = folder / f"{name}_{view}.png"
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        views[view.lower().replace("-", "_")] = (str(path),)
    annotation = None
    if polygons:
        annotation = str(folder / f"{name}.geojson")
        write_annotation(annotation, Annotation(tuple(polygons)))
    grades = {f"{side}_birads": str(int(labels[f"{side}_malignant"])) for side in ("left", "right")}
    return Case(
        name, f"patient {number}", "exam", views=views, split=split, annotation=annotation,
        breast_labels=labels, attributes=grades,
    )  # fmt: skip


def breast(rng: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = np.hypot(rows - HEIGHT / 2, columns) < rng.uniform(46, 50)
    grey = 700 + rng.normal(0, 40, (HEIGHT, WIDTH))
    return np.where(inside, grey.clip(1, 4095), 0).astype(np.uint16)


def draw(pixels: np.ndarray, row: int, column: int, grade: str) -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    if grade == "malignant":
        mark = np.maximum(abs(rows - row), abs(columns - column)) < 7
    else:
        radius = np.hypot(rows - row, columns - column)
        mark = (radius < 8) & (radius > 5)
    pixels[mark & (pixels > 0)] += 1600


def exams(
    folder: Path, count: int, split: str | None = "train", first: int = 0, **options: object
) -> list[Case]:
    folder.mkdir(parents=True, exist_ok=True)
    return [exam(folder, number, split, **options) for number in range(first, first + count)]


def cohort(folder: Path, train: int = 16, val: int = 8, test: int = 0) -> Cohort:
    """Write a cohort. Each split has its own range of numbers, so that no patient is in two splits."""
    return Cohort(
        tuple(
            exams(folder, train)
            + exams(folder, val, "val", 100)
            + (exams(folder, test, "test", 200) if test else [])
        )
    )
