"""`lobule check`: every planted leak and copy is reported, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lobule.audit import check
from lobule.audit.duplicates import near_duplicates
from lobule.audit.picture import filtered, oriented, oriented_window, shrunk
from lobule.audit.splits import confounded
from lobule.cli import COMMANDS
from lobule.cli.base import LazyGroup, run
from lobule.cohort import Case, Cohort, write_cohort
from tests.scanning.support import write_slide

Pixels = NDArray[np.uint8]


@cache
def texture(seed: int, width: int = 480, height: int = 360) -> Pixels:
    """A random picture with structures of many sizes."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for size in (8, 24, 80):
        noise = rng.normal(size=(height // size + 3, width // size + 3)).astype(np.float32)
        wide = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(wide) / noise.std()
    grey = np.clip(128 + 30 * total, 0, 255)
    return np.stack([grey, 0.7 * grey, 0.9 * grey], axis=2).astype(np.uint8)


def recompressed(pixels: Pixels, path: Path) -> Path:
    Image.fromarray(pixels).save(path.with_suffix(".jpg"), quality=60)
    return path.with_suffix(".jpg")


def saved(change: Callable[[Pixels], Pixels]) -> Callable[[Pixels, Path], Path]:
    def save(pixels: Pixels, path: Path) -> Path:
        Image.fromarray(np.ascontiguousarray(change(pixels))).save(path.with_suffix(".png"))
        return path.with_suffix(".png")

    return save


def resized(factor: float) -> Callable[[Pixels], Pixels]:
    def resize(pixels: Pixels) -> Pixels:
        height, width = (round(side * factor) for side in pixels.shape[:2])
        return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))

    return resize


COPIES: dict[str, Callable[[Pixels, Path], Path]] = {
    "jpeg": recompressed,
    "cropped on two sides": saved(lambda pixels: pixels[36:, :432]),
    "cropped on all sides": saved(lambda pixels: pixels[36:324, 48:432]),
    "cropped on one side": saved(lambda pixels: pixels[:, 48:]),
    "rotated": saved(lambda pixels: np.rot90(pixels)),
    "mirrored": saved(lambda pixels: pixels[:, ::-1]),
    "half": saved(resized(0.5)),
    "double": saved(resized(2.0)),
    "rotated, cropped and half": saved(lambda pixels: resized(0.5)(np.rot90(pixels, 3)[20:440, 10:340])),
}


def image_case(path: Path, split: str = "train", patient: str | None = None) -> Case:
    return Case(path.stem, patient or path.stem, "image", str(path), split=split)


@pytest.mark.parametrize("change", COPIES)
def test_a_copy_of_an_image_is_reported_with_its_change(change: str, tmp_path: Path) -> None:
    cases = [
        image_case(saved(lambda pixels: pixels)(texture(seed), tmp_path / f"i{seed}")) for seed in range(8)
    ]
    cases.append(image_case(COPIES[change](texture(3), tmp_path / "copy"), "test"))
    audit = check(Cohort(tuple(cases)))
    (pair,) = audit.near_duplicates
    assert {pair.first.case, pair.second.case} == {"i3", "copy"}
    assert pair.splits == ("train", "test")
    assert pair.correlation > 0.9
    assert pair.mirrored == (change == "mirrored")
    assert (pair.turns % 2 == 1) == change.startswith("rotated")
    assert not audit.files
    assert audit.pictures == 9


def test_different_images_are_not_reported() -> None:
    pictures = [
        filtered(Case(str(seed), "p", "image"), "image", shrunk(texture(seed)[..., 0].astype(np.float32)))
        for seed in range(60)
    ]
    assert near_duplicates(pictures) == []


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_window_stays_on_its_pixels_when_the_picture_is_turned(mirrored: bool, turns: int) -> None:
    plane = np.zeros((40, 60), np.float32)
    plane[10:30, 6:24] = 1
    left, right, top, bottom = oriented_window((0.1, 0.4, 0.25, 0.75), mirrored, turns)
    turned = oriented(plane, mirrored, turns)
    height, width = turned.shape
    inside = turned[round(top * height) : round(bottom * height), round(left * width) : round(right * width)]
    assert inside.all()
    assert inside.sum() == plane.sum()


def test_copies_of_slides_regions_and_views_are_reported(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"s{seed}.tif", texture(seed, 640, 480)) for seed in range(3)]
    copy = write_slide(tmp_path / "copy.tif", np.ascontiguousarray(np.rot90(texture(1, 640, 480)[:430])))
    cases = [Case(path.stem, path.stem, "slide", str(path), split="train") for path in slides]
    cases.append(Case("copy", "other", "slide", str(copy), split="val"))
    (pair,) = check(Cohort(tuple(cases))).near_duplicates
    assert {pair.first.case, pair.second.case} == {"s1", "copy"}

    exams = []
    for number in range(4):
        views = {}
        for index, view in enumerate(("l_cc", "r_cc")):
            grey = texture(100 + 10 * (number % 3) + index)[..., 0].astype(np.uint16) * 200
            grey[:, 380:] = 0
            grey = grey[:, :-20] if number == 3 else grey
            Image.fromarray(grey).save(tmp_path / f"{number}_{view}.png")
            views[view] = (str(tmp_path / f"{number}_{view}.png"),)
        exams.append(Case(f"e{number}", f"e{number}", "exam", views=views, split="train"))
    pairs = check(Cohort(tuple(exams))).near_duplicates
    assert [(pair.first.case, pair.second.case, pair.first.image, pair.second.image) for pair in pairs] in (
        [("e0", "e3", "l_cc", "l_cc"), ("e0", "e3", "r_cc", "r_cc")],
        [("e3", "e0", "l_cc", "l_cc"), ("e3", "e0", "r_cc", "r_cc")],
    )


def test_equal_files_and_shared_patients_are_listed_once(tmp_path: Path) -> None:
    first = saved(lambda pixels: pixels)(texture(1), tmp_path / "first")
    (tmp_path / "again.png").write_bytes(first.read_bytes())
    other = saved(lambda pixels: pixels)(texture(2), tmp_path / "other")
    (tmp_path / "same_size.png").write_bytes(other.read_bytes()[:-1] + b"\0")
    cases = [
        image_case(first, "train", "P 1"),
        image_case(tmp_path / "again.png", "test", "p  1"),
        image_case(other, "train", "P2"),
        image_case(tmp_path / "same_size.png", "train", "P2"),
    ]
    audit = check(Cohort(tuple(cases)), pixels=False)
    (group,) = audit.files
    assert (group.cases, group.splits) == (("first", "again"), ("train", "test"))
    (shared,) = audit.patients
    assert shared.patient == "P 1"
    assert shared.cases == {"train": ("first",), "test": ("again",)}
    assert audit.problems == 2


def test_regions_of_one_slide_are_reported_only_across_splits(tmp_path: Path) -> None:
    from lobule.geometry import Box

    path = write_slide(tmp_path / "slide.tif", texture(1, 1200, 900))
    boxes = [Box(0, 0, 500, 400), Box(600, 400, 500, 400)]
    regions = [
        Case(f"r{index}", "p", "region", str(path), split="train", l0_box=box)
        for index, box in enumerate(boxes)
    ]
    assert check(Cohort(tuple(regions))).problems == 0
    leaking = [regions[0], replace(regions[1], split="test")]
    audit = check(Cohort(tuple(leaking)))
    assert [group.splits for group in audit.files] == [("train", "test")]
    assert len(audit.patients) == 1


def cases_of_sites(table: dict[tuple[str, str], int]) -> list[Case]:
    return [
        Case(f"{site}{label}{number}", f"{site}{label}{number}", "image", site=site, label=label)
        for (site, label), count in table.items()
        for number in range(count)
    ]


def test_confounding_is_the_corrected_cramers_v_of_site_and_label() -> None:
    table = {("A", "tumour"): 45, ("A", "normal"): 5, ("B", "tumour"): 10, ("B", "normal"): 40}
    finding = confounded(cases_of_sites(table))
    assert finding is not None
    # chi2 = n (ad - bc)^2 / (row and column sums); V = sqrt((phi2 - 1/(n-1)) / (2 - 1/(n-1) - 1))
    phi2 = (45 * 40 - 5 * 10) ** 2 / (50 * 50 * 55 * 45)
    assert finding.association == pytest.approx(np.sqrt((phi2 - 1 / 99) / (1 - 1 / 99)))
    assert finding.patients["A"] == {"normal": 5, "tumour": 45}
    balanced = {("A", "tumour"): 25, ("A", "normal"): 25, ("B", "tumour"): 24, ("B", "normal"): 26}
    assert confounded(cases_of_sites(balanced)) is None
    few = {("A", "tumour"): 2, ("B", "normal"): 2}
    assert confounded(cases_of_sites(few)) is None


def test_command_prints_one_list_for_each_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = [
        image_case(saved(lambda pixels: pixels)(texture(seed), tmp_path / f"i{seed}")) for seed in range(3)
    ]
    cases.append(image_case(recompressed(texture(0), tmp_path / "copy"), "test", "i0"))
    (tmp_path / "broken.png").write_bytes(b"no picture")
    cases.append(image_case(tmp_path / "broken.png", "test"))
    write_cohort(Cohort(tuple(cases)), tmp_path / "cohort.csv")
    root = LazyGroup("lobule", COMMANDS, help="")
    assert run(root, ["check", str(tmp_path / "cohort.csv"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [pair["cases"] for pair in report["near_duplicates"]] in ([["i0", "copy"]], [["copy", "i0"]])
    assert [item["patient"] for item in report["patients_in_several_splits"]] == ["i0"]
    assert list(report["unreadable"]) == ["broken"]
    assert report["equal_files"] == report["confounding"] == []
    assert run(root, ["check", str(tmp_path / "cohort.csv")]) == 1
    text = capsys.readouterr().out
    for line in ("near duplicates", "(in train and test): correlation", "equal files", "none", "unreadable"):
        assert line in text


def test_an_interrupted_check_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second call reads only the cases without a stored picture and gives the same report as one call."""
    # The package exports a function with the name of the module.
    check_module: Any = import_module("lobule.audit.check")
    cases = [
        image_case(saved(lambda pixels: pixels)(texture(seed), tmp_path / f"i{seed}")) for seed in range(5)
    ]
    cases.append(image_case(COPIES["cropped on one side"](texture(3), tmp_path / "copy"), "test"))
    cohort = Cohort(tuple(cases))
    expected = check(cohort)
    actual = check_module.shrunk_images
    opened: list[str] = []

    def interrupted(case: Case):
        if len(opened) == 3:
            raise KeyboardInterrupt
        opened.append(case.id)
        return actual(case)

    with monkeypatch.context() as patch:
        patch.setattr(check_module, "shrunk_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            check(cohort, threads=1, work=tmp_path / "work")

    def counted(case: Case):
        opened.append(case.id)
        return actual(case)

    monkeypatch.setattr(check_module, "shrunk_images", counted)
    audit = check(cohort, threads=1, work=tmp_path / "work")
    assert sorted(opened) == sorted(case.id for case in cases)
    assert [pair.correlation for pair in audit.near_duplicates] == [
        pair.correlation for pair in expected.near_duplicates
    ]
    assert audit.pictures == expected.pictures == 6

    # A changed file and a damaged picture are read again.
    saved(lambda pixels: pixels)(texture(40), tmp_path / "i0")
    (tmp_path / "work/pictures/i1.npz").write_bytes(b"PK damaged")
    opened.clear()
    write_cohort(cohort, tmp_path / "cohort.csv")
    root = LazyGroup("lobule", COMMANDS, help="")
    arguments = ["check", str(tmp_path / "cohort.csv"), "--out", str(tmp_path / "work"), "--json"]
    assert run(root, arguments) == 1
    assert sorted(opened) == ["i0", "i1"]
    assert json.loads((tmp_path / "work/check.json").read_text()) == json.loads(capsys.readouterr().out)
