"""Each script runs to its end on data laid out as released, with a damaged case and after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from lobule.cohort import read_cohort
from lobule.phantoms.exams import write_exams
from lobule.phantoms.images import write_images
from lobule.phantoms.slides import SlidePhantom
from tests.methods.rakhlin.support import painted
from tests.runs.released import finish, kill_once, write_camelyon16
from tests.runs.test_bach_rakhlin import SMALL as SMALL_BACH
from tests.runs.test_camelyon16_chowder import SMALL as SMALL_CHOWDER
from tests.runs.test_camelyon16_fwrd import SMALL as SMALL_FWRD
from tests.runs.test_camelyon16_scannet import SMALL as SMALL_SCANNET
from tests.runs.test_nyu import stand_ins

pytestmark = pytest.mark.campaign


def check_cohort(out: Path, *, training: int, testing: int) -> None:
    """Check that each slide is the slide, and that test slides have the organisers' masks."""
    cohort = read_cohort(out / "cohort.csv")
    assert (len(cohort.split("train")), len(cohort.split("test"))) == (training + 1, testing + 1)
    assert all("background_tissue" not in str(case.path) for case in cohort)
    outlined = [case for case in cohort if case.label == "tumor"]
    assert outlined
    for case in outlined:
        ending = "_evaluation_mask.png" if case.split == "test" else "lesion_annotations.zip"
        assert str(case.annotation).endswith(ending)


def test_chowder_on_released_slides(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    like = SlidePhantom(0, 1024, 768, 1.0, tissue=0.6)
    write_camelyon16(data, like, training=8, testing=4, seed=3)
    variables = {**SMALL_CHOWDER, "MODELS": "chowder", "CAMELYON16": str(data), "OUT": str(out)}
    kill_once("camelyon16_chowder", variables, "features/**/*.h5")
    printed = finish("camelyon16_chowder", variables)
    for line in ("estimate for 14 cases", "disk: about", "here, chowder", "0.858", "Research use only"):
        assert line in printed, printed
    check_cohort(out, training=8, testing=4)
    data_of = json.loads((out / "chowder" / "evaluation" / "evaluation.json").read_text())
    lesions = data_of["lesions"]["all"]
    assert lesions["lesions"] + lesions["isolated_tumour_cells"] >= 1  # from masks in which tumour is 1
    again = finish("camelyon16_chowder", variables)
    assert again.splitlines()[-8:] == printed.splitlines()[-8:]


def test_fwrd_on_released_slides(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    like = SlidePhantom(0, 1024, 768, 0.5, tissue=0.6)
    write_camelyon16(data, like, training=8, testing=4, seed=2)
    variables = {**SMALL_FWRD, "CAMELYON16": str(data), "OUT": str(out)}
    kill_once("camelyon16_fwrd", variables, "results/cases/*/result.json")
    printed = finish("camelyon16_fwrd", variables)
    outlined = "slides used, of them 3 with outlines: 1 of"
    for line in ("estimate for 5 cases", "2 outlined slides learn", outlined, "FW-RD, ten slides"):
        assert line in printed, printed
    check_cohort(out, training=8, testing=4)


def test_scannet_on_released_slides(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    like = SlidePhantom(0, 2048, 1536, 0.5, tissue=0.6)
    write_camelyon16(data, like, training=8, testing=4, seed=4)
    variables = {**SMALL_SCANNET, "SLIDE_SCORE": "max", "CAMELYON16": str(data), "OUT": str(out)}
    kill_once("camelyon16_scannet", variables, "results/cases/*/result.json")
    printed = finish("camelyon16_scannet", variables)
    for line in ("estimate for 5 cases", "HMS & MIT II, the winner", "The submission gives the same"):
        assert line in printed, printed
    check_cohort(out, training=8, testing=4)


def test_bach_with_a_damaged_test_image(tmp_path: Path) -> None:
    data, out = tmp_path / "ICIAR2018_BACH_Challenge", tmp_path / "out"
    write_images(data, 4, size=(160, 120), seed=2)
    (data / "cohort.csv").unlink()
    folder = data / "ICIAR2018_BACH_Challenge_TestDataset" / "Photos"
    folder.mkdir(parents=True)
    for number, label in ((0, "benign"), (1, "invasive"), (2, "normal")):
        Image.fromarray(painted(label, number)).save(folder / f"test{number}.tif")
    content = (folder / "test1.tif").read_bytes()
    (folder / "test1.tif").write_bytes(content[: len(content) // 3])
    variables = {**SMALL_BACH, "SLIDES": "0", "BACH": str(data), "OUT": str(out)}
    kill_once("bach_rakhlin", variables, "bundle/**/*")
    printed = finish("bach_rakhlin", variables)
    for line in ("estimate for 19 cases", "87.2 ± 2.6", "2 predictions in", "no prediction for test1"):
        assert line in printed, printed
    assert (out / "pred.csv").read_text().splitlines()[0] == "case,class"


def test_nyu_with_a_damaged_exam(tmp_path: Path) -> None:
    stand_ins(tmp_path / "weights")
    manifest = write_exams(tmp_path / "made", exams=3, size=(960, 702), seed=6, malignant=0.6)
    out = tmp_path / "out"
    broken = read_cohort(manifest).cases[1].views["l_cc"][0]
    Path(broken).write_bytes(Path(broken).read_bytes()[:2000])
    variables = {
        "WEIGHTS": str(tmp_path / "weights"), "EXAMS": str(manifest), "OUT": str(out), "RESAMPLES": "20",
        "SETTINGS": "reading.epochs=1 reading.augmentation=false",
    }  # fmt: skip
    kill_once("nyu", variables, "image-results/cases/*/result.json")
    printed = finish("nyu", variables)
    for line in ("estimate for 3 cases", "AUC of malignancy per breast", "published   0.895"):
        assert line in printed, printed
