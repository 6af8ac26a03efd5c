"""Exams from folders and manifest rows, PNG images, film scans, and real views from file to crop."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lobule.errors import CaseError, DamagedFile, NotAMammogram, TooLarge, UnknownFormat
from lobule.mammograms.exams import read_exams, read_view, require_one_patient, view_named
from lobule.mammograms.mask import with_black_background
from lobule.mammograms.png import read_png
from lobule.mammograms.published.crop import crop_of
from lobule.mammograms.views import VIEWS
from lobule.phantoms.exams import write_exams
from tests.mammograms.sample_files import blob, pixels_of, write_view


@pytest.fixture
def folder(tmp_path):
    """Two complete exams, one of them with alternates, and unrelated files."""
    pytest.importorskip("pydicom")
    for name, patient, seed in (("a", "P1", 7), ("b", "P2", 8)):
        (tmp_path / name).mkdir()
        for view in VIEWS:
            write_view(tmp_path / name / f"{view}.dcm", view, patient=patient, seed=seed)
    write_view(tmp_path / "a" / "later.dcm", "R-CC", time="121212", instance=9)
    write_view(tmp_path / "a" / "earlier.dcm", "R-CC", time="090000", instance=8)
    write_view(tmp_path / "a" / "magnified.dcm", "R-CC", modifiers=(("399163009", "SCT", "magnification"),))
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    return tmp_path


def test_a_folder_of_mixed_studies(folder):
    exam_folder = read_exams(folder)
    assert [exam.patient for exam in exam_folder.exams] == ["P1", "P2"]
    first, second = exam_folder.exams
    assert list(first.views) == list(VIEWS)
    chosen = [Path(heading.path).name for heading in first.views["R-CC"]]
    assert chosen == ["later.dcm", "R-CC.dcm", "earlier.dcm"]
    assert len(second.views["R-CC"]) == 1
    assert [Path(heading.path).name for heading in exam_folder.refused] == ["magnified.dcm"]
    assert [Path(path).name for path in exam_folder.failed] == ["notes.txt"]
    assert np.array_equal(read_view(first.views["L-MLO"][0].path).pixels, pixels_of("L-MLO"))


def test_the_larger_of_two_images_taken_together_is_chosen(tmp_path):
    pytest.importorskip("pydicom")
    write_view(tmp_path / "small.dcm", pixels=blob((60, 40)))
    write_view(tmp_path / "large.dcm", pixels=blob((120, 90)), instance=2)
    (exam,) = read_exams(tmp_path).exams
    assert [Path(heading.path).name for heading in exam.views["L-CC"]] == ["large.dcm", "small.dcm"]
    assert list(exam.views) == ["L-CC"]


def test_two_patients_in_one_study(folder):
    write_view(
        folder / "b" / "stranger.dcm", change=lambda d: setattr(d, "StudyInstanceUID", study_of(folder / "b"))
    )
    exam_folder = read_exams(folder)
    assert [exam.patient for exam in exam_folder.exams] == ["P1"]
    assert isinstance(exam_folder.failed[study_of(folder / "b")], NotAMammogram)
    with pytest.raises(NotAMammogram, match=r"several patients.*P1, P2"):
        require_one_patient(read_view(folder / study / "L-CC.dcm").heading for study in "ab")


def study_of(folder):
    import pydicom

    return pydicom.dcmread(folder / "L-CC.dcm").StudyInstanceUID


def test_a_file_of_another_view_or_kind_is_refused(folder):
    assert read_view(folder / "a" / "L-CC.dcm", view="L-CC").heading.patient == "P1"
    with pytest.raises(NotAMammogram, match=r"L-MLO\.dcm: the file shows another view.*L-CC.*L-MLO"):
        read_view(folder / "a" / "L-MLO.dcm", view="L-CC")
    with pytest.raises(
        NotAMammogram, match=r"magnified\.dcm: the image cannot be used as a view.*magnification"
    ):
        read_view(str(folder / "a" / "magnified.dcm"), view="R-CC")
    with pytest.raises(NotAMammogram, match="another view"):
        read_view(folder / "a" / "L-CC.dcm", view="R-CC")


def test_images_allowed_by_name_can_be_read(tmp_path):
    pytest.importorskip("pydicom")
    path = write_view(tmp_path / "film.dcm", form="computed")
    assert read_exams(tmp_path).exams == ()
    (exam,) = read_exams(tmp_path, allow=["computed radiography"]).exams
    assert [heading.path for heading in exam.views["L-CC"]] == [str(path)]
    mammogram = read_view(path, view="L-CC", allow=["computed radiography"])
    assert np.array_equal(mammogram.pixels, pixels_of())
    with pytest.raises(NotAMammogram, match="computed radiography"):
        read_view(path, view="L-CC")


def test_names_of_views():
    assert [view_named(name) for name in ("l_cc", "R-CC", "L_MLO", "rmlo")] == list(VIEWS)
    with pytest.raises(NotAMammogram, match="no such view"):
        view_named("l_xccl")


@pytest.mark.parametrize("form", ["png", "dicom"])
def test_a_generated_cohort_from_manifest_to_crops(tmp_path, form):
    manifest = write_exams(tmp_path, exams=1, size=(208, 152), form=form, seed=4)
    (row,) = csv.DictReader(manifest.read_text().splitlines())
    for view in VIEWS:
        mammogram = read_view(tmp_path / row[view.lower().replace("-", "_")], view=view)
        assert (mammogram.view, mammogram.horizontal_flip) == (view, "NO")
        crop = crop_of(mammogram.pixels, mammogram.pointing, iterations=3, buffer=4)
        cropped = crop.window.of(mammogram.pixels)
        assert (cropped > 0).mean() > 0.5


@pytest.mark.parametrize(
    ("dtype", "top", "noted"), [(np.uint8, 255, True), (np.uint16, 4095, False), (np.uint16, 65535, False)]
)
def test_grey_pngs_of_any_depth(tmp_path, dtype, top, noted):
    pixels = blob(value=top).astype(dtype)
    pixels[50:60, 3:20] = top // 2
    Image.fromarray(pixels).save(tmp_path / "view.png")
    mammogram = read_png(tmp_path / "view.png", view="L-CC")
    assert np.array_equal(mammogram.pixels, pixels)
    assert mammogram.pixels.dtype == np.uint16
    assert (mammogram.decisions[0].outcome == "noted") == noted
    assert mammogram.pointing == "right"


def test_pngs_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "view.png"
    Image.new("RGB", (30, 40)).save(path)
    with pytest.raises(NotAMammogram, match=r"not grey.*RGB"):
        read_png(path)
    Image.fromarray(np.zeros((40, 30), np.uint16)).save(path)
    with pytest.raises(NotAMammogram, match="empty"):
        read_png(path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 65535, (200, 200), dtype=np.uint16)).save(path)
    monkeypatch.setattr("lobule.mammograms.record.MOST_PIXELS", 10_000)
    with pytest.raises(TooLarge, match="200 × 200"):
        read_png(path)
    monkeypatch.undo()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DamagedFile):
        read_png(path)
    path.write_bytes(b"no image")
    with pytest.raises(UnknownFormat):
        read_png(path)


def test_white_borders_are_removed():
    breast = blob((240, 180), 1500)
    framed = np.pad(breast, ((6, 6), (0, 12)), constant_values=4095)
    cleaned = with_black_background(framed)
    assert (cleaned.pixels[6:-6, :-12] > 0).sum() == pytest.approx((breast > 0).sum(), rel=0.03)
    assert not cleaned.pixels[:6].any()
    assert not cleaned.pixels[:, -12:].any()
    assert "white borders" in cleaned.decision.sentence


def test_film_is_distinguished_from_fat():
    """The noisy background of a film is removed; a breast that is dark inside stays complete."""
    rng = np.random.default_rng(0)
    breast = blob((240, 180), 1500)
    film = np.where(breast > 0, breast, rng.integers(20, 60, breast.shape)).astype(np.uint16)
    cleaned = with_black_background(film)
    assert np.mean((cleaned.pixels > 0) != (breast > 0)) < 0.01
    dark_inside = breast.copy()
    dark_inside[80:160, :40] = 300
    assert np.array_equal(with_black_background(dark_inside).pixels, dark_inside)


def test_the_real_exam_from_file_to_crop(kit):
    images = kit / "mammograms" / "nyu" / "images"
    for view, window in (("L-CC", (0, 2023, 0, 801)), ("R-MLO", (0, 2650, 0, 1006))):
        mammogram = read_view(images / f"0_{view}.png", view=view)
        assert mammogram.horizontal_flip == "NO"
        with Image.open(images / f"0_{view}.png") as image:
            assert np.array_equal(mammogram.pixels, np.asarray(image)), "a background of 0 is left alone"
        assert crop_of(mammogram.pixels, mammogram.pointing).window.edges() == window


@pytest.mark.parametrize("every", [9, pytest.param(1, marks=pytest.mark.campaign)])
def test_film_scans_from_file_to_crop(kit, every):
    """The films are pairs of right and left: the breasts of a pair point in opposite directions."""
    films = sorted((kit / "mammograms" / "mias").glob("*.png"))
    assert len(films) >= 100
    for first, second in list(zip(films[::2], films[1::2], strict=True))[::every]:
        pointing = []
        for path in (first, second):
            mammogram = read_png(path)
            pointing.append(mammogram.pointing)
            crop = crop_of(mammogram.pixels, mammogram.pointing, iterations=30, buffer=15)
            share = (mammogram.pixels > 0).mean()
            assert 0.08 < share < 0.65, path.name
            assert crop.window.height > 400
            assert 150 < crop.window.width < 900
        assert pointing == ["left", "right"], first.name


def test_films_outlined_lesions_lie_in_the_breast(kit):
    folder = kit / "mammograms" / "mias"
    text = (folder / "labels.csv").read_text().splitlines()
    rows = [row for row in csv.DictReader(text) if row["r"]][:12]
    assert rows
    for row in rows:
        pixels = read_png(folder / row["image"]).pixels
        assert pixels[int(row["row"]), int(row["x"])] > 0, row["image"]


def test_every_refusal_is_a_case_error():
    for error in (NotAMammogram, DamagedFile, UnknownFormat, TooLarge):
        assert issubclass(error, CaseError)
