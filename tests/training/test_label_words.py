"""Every word that means normal makes a slide normal in training; messages about unusable slides are right."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from lobule.annotations import Annotation, Polygon, write_annotation
from lobule.cohort import Case, Cohort
from lobule.cohort.labels import NEGATIVE, POSITIVE, is_false, plain
from lobule.errors import AnnotationError
from lobule.methods.reverse_distillation.calibrate import _alternate_classes
from lobule.methods.scannet.scoring import is_tumour
from lobule.training.patch_pools import gather
from lobule.training.patch_sampling import NORMAL, TUMOUR, find_positions
from tests.scanning.support import pixels_of, write_slide
from tests.training.test_sampling import square

NORMAL_WORDS = ("0", "0.0", "benign", "no", "Healthy", "normal", "NEGATIVE", "non-tumor", "false")
TUMOUR_WORDS = ("1", "yes", "malignant", "Tumor", "metastasis")


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("label_words")
    path = write_slide(folder / "slide.tif", pixels_of(600, 400, 0))
    return Case("s", "p", "slide", str(path), mpp=0.5)


@pytest.fixture(scope="module")
def empty_annotation(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("annotations") / "empty.geojson"
    write_annotation(path, Annotation(()))
    return str(path)


@pytest.mark.parametrize("label", NORMAL_WORDS)
def test_every_word_for_normal_makes_the_whole_slide_normal(slide: Case, label: str) -> None:
    positions, notes = find_positions(replace(slide, label=label), None)
    assert notes == []
    assert positions.count(NORMAL) == positions.columns * round(400 / positions.l0_cell[1])
    assert positions.count(TUMOUR) == 0
    assert is_tumour(positions) is False
    assert _alternate_classes([positions], 5) == [positions]


@pytest.mark.parametrize("label", NORMAL_WORDS)
def test_an_empty_annotation_agrees_with_every_word_for_normal(
    slide: Case, empty_annotation: str, label: str
) -> None:
    positions, notes = find_positions(replace(slide, label=label, annotation=empty_annotation), None)
    assert positions.count(NORMAL) > 0
    assert notes == ["its annotation contains no tumour outline: all its tissue is used as normal tissue"]


@pytest.mark.parametrize("label", [*TUMOUR_WORDS, "grade 2"])
def test_an_empty_annotation_of_a_slide_not_labelled_normal_is_an_error_that_names_both(
    slide: Case, empty_annotation: str, label: str
) -> None:
    with pytest.raises(AnnotationError) as error:
        find_positions(replace(slide, label=label, annotation=empty_annotation), None)
    message = str(error.value)
    assert f"the case is labelled '{label}', but its annotation contains no tumour outline" in message
    assert "a label that means no tumour" in message


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("1", "its label '1' means that it contains tumour, but no annotation outlines the tumour"),
        ("grade 2", "does not know whether its label 'grade 2' means tumour or normal tissue"),
        (None, "neither an annotation nor a label"),
    ],
)
def test_the_note_about_an_unusable_slide_gives_the_right_reason(
    slide: Case, label: str | None, reason: str
) -> None:
    usable = replace(slide, id="usable", label="healthy")
    pool = gather(Cohort((replace(slide, label=label), usable)), None, need=(NORMAL,))
    (note,) = pool.notes
    assert note.startswith("s: ")
    assert reason in note
    assert "no patches are drawn from it" in note
    assert pool.usable(NORMAL) == [1]
    assert is_tumour(pool.slides[0]) is (True if label == "1" else None)


def test_a_normal_label_with_outlined_tumour_is_reported(slide: Case, tmp_path: Path) -> None:
    write_annotation(tmp_path / "a.geojson", Annotation((Polygon(square(100, 100, 200)),)))
    outlined = replace(slide, label="benign", annotation=str(tmp_path / "a.geojson"))
    positions, notes = find_positions(outlined, None)
    assert positions.count(TUMOUR) > 0
    assert notes == [
        "its label 'benign' means no tumour, but its annotation outlines tumour: the annotation is used"
    ]


def test_columns_that_hold_yes_or_no_do_not_read_other_label_words() -> None:
    assert all(map(is_false, ("no", " False ", "0", "0.0", "NO")))
    assert not any(map(is_false, ("benign", "normal", "yes", "true", "", "1")))


def test_the_documentation_lists_every_label_word() -> None:
    page = (Path(__file__).parents[2] / "docs/cohorts.md").read_text("utf-8")
    for meaning, words in (("no tumour", NEGATIVE), ("tumour", POSITIVE)):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {meaning} |"))
        assert {plain(word) for word in re.findall(r"`([^`]+)`", row)} == words
