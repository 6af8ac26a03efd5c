"""Scans of exams: scores equal those computed step by step, and a broken view fails only its own exam."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.cohort import Case, Cohort, read_cohort
from lobule.errors import ConfigError
from lobule.mammograms.exam_views import Frame
from lobule.mammograms.exams import read_view
from lobule.mammograms.published.crop import Window
from lobule.mammograms.published.windows import NO_AUGMENTATION, cut, plan_exam
from lobule.mammograms.views import VIEWS
from lobule.methods.four_view import METHOD, Config
from lobule.nets.four_view import TARGETS
from lobule.phantoms.exams import write_exams
from lobule.results import open_results
from lobule.stitch import State
from tests.methods.four_view.configs import changed
from tests.methods.four_view.support import (
    AUGMENTATION,
    NEAR,
    SMALL,
    ByHand,
    bundle_of,
    exam_by_hand,
    nets,
    result_of,
    run,
    view_by_hand,
    views_of,
)
from tests.methods.gmic.test_gmic_scan import blank_exam
from tests.reference.mammograms import right_pointing


@pytest.fixture(scope="module")
def exams(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    folder = tmp_path_factory.mktemp("exams")
    return read_cohort(write_exams(folder, exams=2, size=(300, 220), seed=5))


@pytest.fixture(scope="module")
def scanned(exams: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both exams, scanned with the view-wise model without heatmaps."""
    folder = tmp_path_factory.mktemp("scanned")
    report = run(bundle_of(folder / "bundle"), exams, folder / "results")
    assert dict(report.counts) == {"complete": 2}
    return folder


def about(value: float) -> object:
    return pytest.approx(float(value), abs=1e-5)


def scores_of(folder: Path, case: str) -> list[float]:
    scores = result_of(folder, case)["scores"]
    return [scores[name] for name in TARGETS]


def test_scores_equal_those_by_hand(exams: Cohort, scanned: Path) -> None:
    net, _ = nets(SMALL)
    for case in exams:
        expected = exam_by_hand(case, net, np.random.RandomState(0))
        result = result_of(scanned / "results", case.id)
        np.testing.assert_allclose(scores_of(scanned / "results", case.id), expected.mean(axis=0), **NEAR)
        for index, name in enumerate(TARGETS):
            spread = result["spread"][name]
            np.testing.assert_allclose(spread["std"], expected[:, index].std(), **NEAR)
            np.testing.assert_allclose(spread["greatest"], expected[:, index].max(), **NEAR)
        assert len({round(score, 4) for score in scores_of(scanned / "results", case.id)}) == 4


def test_windows_are_stored_in_pixels_of_the_stored_image(exams: Cohort, scanned: Path) -> None:
    folder = open_results(scanned / "results").case_folder("exam0000")
    assert folder.result["images"]["R-CC"]["pointing"] == "left"
    table = folder.tables["windows R-CC"].read()
    views = views_of(exams["exam0000"])
    view_images = {view: [image.view_image for image in images] for view, images in views.items()}
    stream = np.random.RandomState(0)
    plans = plan_exam(
        view_images, stream, epochs=3, augmentation=AUGMENTATION, size=SMALL.architecture.window
    )
    stored = read_view(exams["exam0000"].views["r_cc"][0], view="R-CC").pixels
    for row, plan in enumerate(plans):
        _, window = plan["R-CC"]
        # The box in the stored image, mirrored, is the window that the published pipeline cuts.
        padded = np.pad(stored, 300)
        top, left = table["l0_y"][row] + 300, table["l0_x"][row] + 300
        piece = padded[top : top + table["l0_height"][row], left : left + table["l0_width"][row]]
        expected = cut(views["R-CC"][0].image, window.unpadded, window.window.shape)
        np.testing.assert_array_equal(piece[:, ::-1], expected)


def test_compat_nyu_uses_one_stream_for_the_cohort(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    report = run(scanned / "bundle", exams, tmp_path / "whole", settings={"reading.compat": "nyu"})
    assert dict(report.counts) == {"complete": 2}
    net, _ = nets(SMALL)
    stream = np.random.RandomState(0)
    for case in exams:
        expected = exam_by_hand(case, net, stream).mean(axis=0)
        np.testing.assert_allclose(scores_of(tmp_path / "whole", case.id), expected, **NEAR)
    # A shard draws the same random numbers as the scan of the whole cohort.
    run(scanned / "bundle", exams, tmp_path / "shard", settings={"reading.compat": "nyu"}, shard=(2, 2))
    assert scores_of(tmp_path / "shard", "exam0001") == scores_of(tmp_path / "whole", "exam0001")
    assert scores_of(tmp_path / "whole", "exam0001") != scores_of(scanned / "results", "exam0001")


def test_the_order_of_exams_does_not_matter_by_default(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    run(scanned / "bundle", Cohort(tuple(reversed(exams.cases)), exams.path), tmp_path / "r")
    for case in exams:
        assert scores_of(tmp_path / "r", case.id) == scores_of(scanned / "results", case.id)


@pytest.mark.parametrize("compat", ["own", "nyu"])
def test_heatmaps_are_channels_of_the_classifier(exams: Cohort, tmp_path: Path, compat: str) -> None:
    bundle = bundle_of(tmp_path / "bundle", heatmaps=True, compat=compat, finding_threshold=0.3)
    report = run(bundle, exams, tmp_path / "r")
    assert dict(report.counts) == {"complete": 2}
    net, patch_net = nets(changed(SMALL, heatmaps=True))
    windows, patches = np.random.RandomState(0), random.Random(0)
    for case in exams:
        if compat == "own":
            windows, patches = np.random.RandomState(0), random.Random(0)
        views = views_of(case)
        heatmaps = {view: views[view][0].heatmaps(patches, patch_net) for view in VIEWS}
        expected = exam_by_hand(case, net, windows, heatmaps).mean(axis=0)
        np.testing.assert_allclose(scores_of(tmp_path / "r", case.id), expected, **NEAR)
        assert_heatmap_and_findings(tmp_path / "r", case.id, views["R-MLO"][0], heatmaps["R-MLO"])


def assert_heatmap_and_findings(results: Path, case: str, view, heatmaps) -> None:
    """Check that the map has the mean of each cell of the stored image, and that findings are in it."""
    folder = open_results(results).case_folder(case)
    reader = folder.maps["heatmap R-MLO"]
    stored = np.full((2, -(-300 // 8) * 8, -(-220 // 8) * 8), np.nan, np.float32)
    for layer, heatmap in zip(stored, heatmaps, strict=True):
        view.window.of(layer)[:] = right_pointing(heatmap, "R-MLO", view.flip)
    cells = stored.reshape(2, stored.shape[1] // 8, 8, -1, 8)
    count = np.isfinite(cells).sum(axis=(2, 4))
    means = np.nansum(cells, axis=(2, 4)) / np.maximum(count, 1)
    scores, states = reader.read()
    np.testing.assert_allclose(scores, means, atol=1e-5)
    np.testing.assert_array_equal(states == State.SCORED, count[0] > 0)
    assert reader.info.classes == ("benign", "malignant") and means.max() > 0.2
    findings = folder.findings()
    rows = [i for i, image in enumerate(findings["image"]) if image == "R-MLO"]
    for index in rows:
        layer = means[("benign", "malignant").index(findings["label"][index])]
        cell = layer[findings["l0_y"][index] // 8, findings["l0_x"][index] // 8]
        assert cell > 0.3 and abs(cell - findings["score"][index]) < 1e-5
    assert bool(rows) == bool((means > 0.3).any())


def test_blank_patches_are_computed_once(exams: Cohort, tmp_path: Path) -> None:
    run(
        bundle_of(tmp_path / "bundle", heatmaps=True),
        exams.where(lambda c: c.id == "exam0000"),
        tmp_path / "r",
    )
    folder = open_results(tmp_path / "r").case_folder("exam0000")
    view = views_of(exams["exam0000"])["L-CC"][0]
    grid = view.grid(random.Random(0))
    blank = sum(not view.image[r : r + 64, c : c + 64].any() for r, c in grid.corners())
    assert folder.tables["patches L-CC"].info.rows == len(grid) - max(0, blank - 1)


def test_resumed_scan_equals_an_uninterrupted_one(exams: Cohort, tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path / "bundle", heatmaps=True)
    run(bundle, exams, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    folder = tmp_path / "broken" / "cases" / "exam0001"
    (folder / "result.json").unlink()
    shutil.rmtree(folder / "tables" / "windows%20R-MLO")
    shutil.rmtree(folder / "maps" / "heatmap%20R-MLO")
    (folder / "tables" / "windows%20L-CC" / "part-000001.parquet").unlink()
    finished_chunk = folder / "tables" / "patches%20L-CC" / "part-000000.parquet"
    before = finished_chunk.stat().st_mtime_ns
    run(bundle, exams, tmp_path / "broken")
    assert finished_chunk.stat().st_mtime_ns == before
    for path in sorted((tmp_path / "whole" / "cases").rglob("*")):
        if path.is_file() and path.name != "run.json":
            twin = tmp_path / "broken" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == twin.read_bytes(), path


def test_dicom_and_png_give_equal_scores(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    dicom = read_cohort(write_exams(tmp_path / "d", exams=2, size=(300, 220), seed=5, form="dicom"))
    run(scanned / "bundle", dicom, tmp_path / "r")
    for case in exams:
        np.testing.assert_allclose(
            scores_of(tmp_path / "r", case.id), scores_of(scanned / "results", case.id), **NEAR
        )
    assert result_of(tmp_path / "r", "exam0000")["images"]["L-CC"]["mpp"] is not None


def test_without_augmentation_there_is_one_window(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    run(scanned / "bundle", exams, tmp_path / "r", settings={"reading.augmentation": False})
    net, _ = nets(SMALL)
    case = exams["exam0001"]
    expected = exam_by_hand(case, net, np.random.RandomState(0), augmentation=NO_AUGMENTATION, epochs=1)
    np.testing.assert_allclose(scores_of(tmp_path / "r", case.id), expected[0], **NEAR)
    assert result_of(tmp_path / "r", case.id)["windows"] == 1


def test_one_of_several_images_of_a_view_is_drawn(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    first, second = exams
    views = {**first.views, "l_cc": (*first.views["l_cc"], *second.views["l_cc"])}
    case = Case("two", "p", "exam", views=views)
    run(scanned / "bundle", Cohort((case,)), tmp_path / "r")
    net, _ = nets(SMALL)
    expected = exam_by_hand(case, net, np.random.RandomState(0)).mean(axis=0)
    np.testing.assert_allclose(scores_of(tmp_path / "r", "two"), expected, **NEAR)
    tables = open_results(tmp_path / "r").case_folder("two").tables
    rows = [tables[name].info.rows for name in ("windows L-CC", "windows L-CC 2") if name in tables]
    assert sum(rows) == 3 and "windows L-CC 2" in tables


# -- missing and broken views -------------------------------------------------------------------------------


def with_faults(exams: Cohort, folder: Path) -> Cohort:
    """A complete exam, one without R-MLO, and one whose L-CC is not an image."""
    folder.mkdir(exist_ok=True)
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    complete_exam = exams.cases[0]
    without = {name: files for name, files in complete_exam.views.items() if name != "r_mlo"}
    broken = {**complete_exam.views, "l_cc": (str(folder / "bad.png"),)}
    return Cohort((
        complete_exam,
        Case("without", "p1", "exam", views=without),
        Case("broken", "p2", "exam", views=broken),
    ))  # fmt: skip


def test_view_wise_model_fails_an_incomplete_exam(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    report = run(scanned / "bundle", with_faults(exams, tmp_path / "f"), tmp_path / "r")
    assert dict(report.counts) == {"complete": 1, "failed": 2}
    error = result_of(tmp_path / "r", "without")["error"]
    assert error["type"] == "NotAMammogram" and "R-MLO" in error["message"]
    assert "image-wise" in error["remedy"]
    assert result_of(tmp_path / "r", "broken")["error"]["subject"].endswith("bad.png")
    assert scores_of(tmp_path / "r", "exam0000") == scores_of(scanned / "results", "exam0000")


def test_image_wise_model_scores_the_available_views(exams: Cohort, tmp_path: Path) -> None:
    cohort = with_faults(exams, tmp_path / "f")
    bundle = bundle_of(tmp_path / "bundle", variant="image_wise")
    report = run(bundle, cohort, tmp_path / "r")
    assert dict(report.counts) == {"complete": 2, "partial": 1}
    net, _ = nets(changed(SMALL, variant="image_wise"))
    files = {view: exams.cases[0].views[view.lower().replace("-", "_")][0] for view in VIEWS}
    expected = {view: view_by_hand(files[view], view, net).mean(axis=0) for view in VIEWS}
    complete, without, broken = (result_of(tmp_path / "r", case.id) for case in cohort)
    both = (expected["R-CC"] + expected["R-MLO"]) / 2
    assert complete["scores"]["right_malignant"] == about(both[1])
    assert without["scores"]["right_malignant"] == about(expected["R-CC"][1])
    assert broken["scores"]["left_benign"] == about(expected["L-MLO"][0])
    assert broken["scores"]["right_benign"] == about(both[0])
    assert "without R-MLO" in without["notes"][0] and "image-wise" in without["notes"][0]
    assert {failed["image"] for failed in broken["failed"]} == {"L-CC"}
    assert any("bad.png" in note for note in broken["notes"])
    # When the file is repaired, a retry scores the view.
    shutil.copy(files["L-CC"], tmp_path / "f" / "bad.png")
    run(bundle, cohort, tmp_path / "r", retry_failed=True)
    assert result_of(tmp_path / "r", "broken")["scores"] == pytest.approx(complete["scores"])


def test_single_right_views_are_cut_unmirrored_as_published(exams: Cohort, tmp_path: Path) -> None:
    run(bundle_of(tmp_path / "bundle", variant="image_wise", heatmaps=True), exams, tmp_path / "r")
    net, patch_net = nets(changed(SMALL, variant="image_wise", heatmaps=True))
    path = exams["exam0000"].views["r_cc"][0]
    view = ByHand(path, "R-CC")
    view.image = np.ascontiguousarray(view.image[:, ::-1])
    stored_way = view.heatmaps(random.Random(0), patch_net)
    heatmaps = tuple(heatmap[:, ::-1] for heatmap in stored_way)
    expected = view_by_hand(path, "R-CC", net, heatmaps).mean(axis=0)
    view_result = result_of(tmp_path / "r", "exam0000")["views"]["R-CC"]
    assert [view_result["benign"]["score"], view_result["malignant"]["score"]] == [
        about(value) for value in expected
    ]


def test_a_slide_is_an_error(exams: Cohort, scanned: Path, tmp_path: Path) -> None:
    case = Case("slide", "p", "slide", path=exams.cases[0].paths[0])
    report = run(scanned / "bundle", Cohort((case,)), tmp_path / "r")
    assert "this model reads exams" in report.failed["slide"]


def test_settings_of_the_weights_cannot_be_changed() -> None:
    with pytest.raises(ConfigError, match="widths"):
        METHOD.changed_for_scan({"architecture.widths": (1, 2)})
    with pytest.raises(ConfigError, match="view_wise, image_wise"):
        changed(variant="whole")
    assert Config.from_dict(json.loads(json.dumps(SMALL.to_dict()))) == SMALL


@given(
    crop=st.tuples(*[st.integers(0, 50)] * 4),
    window=st.tuples(*[st.integers(-30, 60)] * 4),
    mirrored=st.booleans(),
)
def test_frame_conversions_are_inverse(crop, window, mirrored: bool) -> None:
    t, h, left, w = crop
    frame = Frame(Window(t, t + h + 1, left, left + w + 1), mirrored)
    y, x = sorted(window[:2]), sorted(window[2:])
    inside = Window(y[0], y[1], x[0], x[1])
    assert frame.of_l0(frame.to_l0(inside)) == inside
    stored = np.arange(120 * 120).reshape(120, 120)
    cut = Window(0, min(3, h + 1), 0, min(5, w + 1))
    box = frame.to_l0(cut)
    piece = stored[box.y : box.bottom, box.x : box.right]
    np.testing.assert_array_equal(cut.of(frame.of(stored)), piece[:, ::-1] if mirrored else piece)


@pytest.mark.parametrize("variant", ["view_wise", "image_wise"])
def test_exam_of_blank_views_has_no_score(tmp_path: Path, variant: str) -> None:
    bundle = bundle_of(tmp_path / "bundle", variant=variant)
    report = run(bundle, blank_exam(tmp_path), tmp_path / "r")
    assert dict(report.counts) == {"unscored": 1}
    result = result_of(tmp_path / "r", "blank")
    assert result["scores"] == {}
    assert "Nothing was scored: no view of the exam shows a breast" in result["notes"][0]
