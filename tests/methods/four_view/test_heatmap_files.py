"""Heatmap files of NYU's tools, written and read here with h5py alone."""

from __future__ import annotations

import random
from pathlib import Path

import h5py
import numpy as np
import pytest

from lobule.cli import main
from lobule.cohort import Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.phantoms.exams import write_exams
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import (
    NEAR,
    SMALL,
    bundle_of,
    exam_by_hand,
    nets,
    result_of,
    run,
    views_of,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("heatmaps")


@pytest.fixture(scope="module")
def exams(folder: Path) -> Cohort:
    return read_cohort(write_exams(folder / "exams", exams=1, size=(300, 220), seed=5))


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    return bundle_of(folder / "bundle", heatmaps=True)


@pytest.fixture(scope="module")
def written(folder: Path, exams: Cohort, bundle: Path) -> Path:
    out = folder / "written"
    manifest = str(folder / "exams" / "cohort.csv")
    with pytest.raises(SystemExit) as exit_:
        main(
            [
                "heatmaps",
                str(bundle),
                manifest,
                "--out",
                str(out),
                "--device",
                "cpu",
                "--precision",
                "float32",
            ]
        )
    assert not exit_.value.code
    return out


def stored_name(path: str) -> str:
    return Path(path).stem + ".hdf5"


def test_files_are_transposed_in_the_orientation_of_the_stored_image(exams: Cohort, written: Path) -> None:
    _, patch_net = nets(changed(SMALL, heatmaps=True))
    stream = random.Random(0)
    case = exams.cases[0]
    mirrored = []
    for view, (image,) in views_of(case).items():
        path = case.views[view.lower().replace("-", "_")][0]
        benign, malignant = image.heatmaps(stream, patch_net)
        for grade, heatmap in (("benign", benign), ("malignant", malignant)):
            with h5py.File(written / f"heatmap_{grade}" / stored_name(path)) as file:
                assert (file["image"].dtype, file["image"].compression) == (np.float32, "lzf")
                stored = file["image"][()].T
            mirrored.append((view[0] == "R") == (image.flip == "NO"))
            np.testing.assert_allclose(stored[:, ::-1] if mirrored[-1] else stored, heatmap, **NEAR)
    assert set(mirrored) == {True, False}


def test_a_scan_that_reads_the_files_equals_one_that_computes_them(
    exams: Cohort, bundle: Path, written: Path, folder: Path
) -> None:
    run(bundle, exams, folder / "computed")
    run(bundle, exams, folder / "read", settings={"reading.heatmap_files": str(written)})
    computed, read = (result_of(folder / name, exams.cases[0].id) for name in ("computed", "read"))
    for name, score in computed["scores"].items():
        assert read["scores"][name] == pytest.approx(score, abs=1e-6)
    assert read["heatmaps"] == {"read_from": str(written)}


def test_foreign_heatmaps_reach_the_classifier(exams: Cohort, bundle: Path, folder: Path) -> None:
    rng = np.random.default_rng(3)
    case, maps = exams.cases[0], {}
    for view, (image,) in views_of(case).items():
        path = case.views[view.lower().replace("-", "_")][0]
        maps[view] = rng.random((2, *image.image.shape), np.float32)
        for grade, heatmap in zip(("benign", "malignant"), maps[view], strict=True):
            is_mirrored = (view[0] == "R") == (image.flip == "NO")
            target = folder / "foreign" / f"heatmap_{grade}" / stored_name(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            with h5py.File(target, "w") as file:
                file["image"] = (heatmap[:, ::-1] if is_mirrored else heatmap).T
    run(bundle, exams, folder / "of foreign", settings={"reading.heatmap_files": str(folder / "foreign")})
    net, _ = nets(changed(SMALL, heatmaps=True))
    expected = exam_by_hand(case, net, np.random.RandomState(0), maps).mean(axis=0)
    scores = list(result_of(folder / "of foreign", case.id)["scores"].values())
    np.testing.assert_allclose(scores, expected, **NEAR)

    with h5py.File(target, "w") as file:  # not transposed
        file["image"] = maps["R-MLO"][1]
    report = run(
        bundle, exams, folder / "refused", settings={"reading.heatmap_files": str(folder / "foreign")}
    )
    assert "unexpected shape" in report.failed[case.id]


def test_a_classifier_without_heatmaps_reads_none(exams: Cohort, folder: Path) -> None:
    plain = bundle_of(folder / "plain")
    with pytest.raises(ConfigError, match="reads no heatmaps"):
        run(plain, exams, folder / "plain results", settings={"reading.heatmap_files": str(folder)})
