"""The engine: maps equal direct evaluation, resumed equals unbroken, failures stay local."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ResultsError, UsageError
from lobule.results import open_results
from lobule.scanning.cases import MAX_OPEN_CASES
from lobule.scanning.contract import Batch, ScanOptions
from lobule.scanning.progress import Progress
from lobule.scanning.scan import Machine, scan
from lobule.slides.slide import Slide
from lobule.stitch import State
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    TwoPassPredictor,
    cohort_of,
    mean_map,
    pixels_of,
    tree,
    write_slide,
)


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide(tmp_path / "one.tif", pixels_of(700, 451))


def scan_small(cohort: Cohort, out: Path, **scan_options: object) -> object:
    settings = {"options": EVERYWHERE, "machine": SMALL, **scan_options}
    predictor = settings.pop("predictor", None) or MeanPredictor()
    return scan(predictor, BUNDLE, cohort, out, **settings)  # type: ignore[arg-type]


def test_the_map_equals_direct_evaluation(slide: Path, tmp_path: Path) -> None:
    report = scan_small(cohort_of(slide), tmp_path / "r")
    assert dict(report.counts) == {"complete": 1}  # type: ignore[attr-defined]
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    want = mean_map(pixels_of(700, 451))
    np.testing.assert_allclose(reader.scores(), want, atol=1e-5)
    assert (reader.states() == State.SCORED).all()
    assert reader.info.l0_stride == (16.0, 16.0) and reader.info.um_stride == (8.0, 8.0)


def test_the_caches_of_open_slides_share_a_fifth_of_the_memory(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    use_cache = Slide.use_cache

    def record(slide: Slide, nbytes: int) -> None:
        sizes.append(nbytes)
        use_cache(slide, nbytes)

    monkeypatch.setattr(Slide, "use_cache", record)
    scan_small(cohort_of(slide), tmp_path / "r", machine=replace(SMALL, max_ram=1_000_000))
    assert sizes == [1_000_000 // 5 // MAX_OPEN_CASES]


@pytest.mark.parametrize("machine", [
    Machine(device="cpu", precision="float32", batch=1, cells=1, readers=1, replicas=1, channels_last=False),
    Machine(device="cpu", precision="float32", batch=5, cells=50, readers=3, replicas=1),
])  # fmt: skip
def test_other_engine_settings_give_the_same_scores(slide: Path, tmp_path: Path, machine: Machine) -> None:
    scan_small(cohort_of(slide), tmp_path / "a")
    scan_small(cohort_of(slide), tmp_path / "b", machine=machine)
    a, b = (open_results(tmp_path / name).case_folder("one").maps["mean"].scores() for name in "ab")
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_same_settings_give_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "a")
    scan_small(cohort_of(slide), tmp_path / "b")
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


def test_a_second_run_computes_nothing(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    again = MeanPredictor()
    progress = Progress()
    scan_small(cohort_of(slide), tmp_path / "r", predictor=again, progress=progress)
    assert progress.finished == {"one": "skipped"} and again.forwards == 0
    assert tree(tmp_path / "r") == before


def test_only_missing_chunks_are_computed_again(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    case = tmp_path / "r" / "cases" / "one"
    (case / "result.json").unlink()
    states = sorted((case / "maps" / "mean" / "state" / "c").glob("*/*"))
    assert len(states) > 3
    states[1].unlink()
    again = MeanPredictor()
    scan_small(cohort_of(slide), tmp_path / "r", predictor=again)
    assert tree(tmp_path / "r") == before
    assert 0 < again.forwards < 10


def test_changed_input_is_scanned_again(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r")
    write_slide(slide, pixels_of(700, 451, seed=5))
    scan_small(cohort_of(slide), tmp_path / "r")
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    np.testing.assert_allclose(reader.scores(), mean_map(pixels_of(700, 451, seed=5)), atol=1e-5)


def test_large_slide_changed_between_samples_is_scanned_again(tmp_path: Path) -> None:
    """Invert 44 % of the bytes where earlier versions did not look, and leave size and times as they were."""
    slide = write_slide(tmp_path / "one.tif", pixels_of(2048, 1600), tile=512, compression=None)
    data, times = bytearray(slide.read_bytes()), slide.stat()
    assert len(data) > 9 << 20
    scan_small(cohort_of(slide), tmp_path / "r")
    gap = (len(data) - (64 << 10)) // 63
    for start in range((64 << 10), len(data) - (2 << 20), gap):
        if start > 1 << 20:
            data[start : start + gap // 2] = bytes(255 - byte for byte in data[start : start + gap // 2])
    slide.write_bytes(data)
    os.utime(slide, ns=(times.st_atime_ns, times.st_mtime_ns))
    progress = Progress()
    scan_small(cohort_of(slide), tmp_path / "r", progress=progress, verify="full")
    assert progress.finished == {"one": "complete"}
    changed = tifffile.imread(slide)
    assert (changed != pixels_of(2048, 1600)).mean() > 0.3
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    np.testing.assert_allclose(reader.scores(), mean_map(changed), atol=1e-5)


def test_result_is_kept_when_only_the_modification_time_changed(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r")
    before = tree(tmp_path / "r")
    os.utime(slide, ns=(1, 1))
    for verify in ("changed", "full"):
        progress = Progress()
        scan_small(cohort_of(slide), tmp_path / "r", progress=progress, verify=verify)
        assert progress.finished == {"one": "skipped"} and tree(tmp_path / "r") == before


def test_unknown_verify_is_refused_before_scanning(slide: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'all' of verify.*changed or full"):
        scan_small(cohort_of(slide), tmp_path / "r", verify="all")
    assert not (tmp_path / "r").exists()


def test_results_folder_whose_name_looks_like_a_url(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    report = scan_small(cohort_of(slide), Path("results-12:30"), predictor=TwoPassPredictor())
    assert dict(report.counts) == {"complete": 1}  # type: ignore[attr-defined]
    folder = open_results("results-12:30").case_folder("one")
    assert folder.findings().keys() and len(folder.tables["look"].read()["value"])
    with pytest.raises(UsageError, match="cannot write a folder to a URL"):
        scan_small(cohort_of(slide), "memory://results")  # type: ignore[arg-type]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.tif", "results-12:30"]


def test_case_name_too_long_for_a_folder_is_refused_before_scanning(slide: Path, tmp_path: Path) -> None:
    cohort = Cohort((Case("#" * 90, "p", "slide", path=str(slide)),))
    with pytest.raises(ConfigError, match="too long for a folder name"):
        scan_small(cohort, tmp_path / "r")


def test_corrected_patient_is_updated_on_resume(slide: Path, tmp_path: Path) -> None:
    for patient in ("wrong", "right"):
        progress, case = Progress(), Case("one", patient, "slide", path=str(slide))
        scan_small(Cohort((case,)), tmp_path / "r", progress=progress)
    assert progress.finished == {"one": "skipped"}
    result = open_results(tmp_path / "r").case_folder("one").result
    assert result is not None and result["patient"] == "right"


def test_a_map_feeds_a_second_pass(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r", predictor=TwoPassPredictor())
    folder = open_results(tmp_path / "r").case_folder("one")
    table = folder.tables["look"].read()
    scores = folder.maps["mean"].scores()
    top = np.unravel_index(int(scores.argmax()), scores.shape)
    x, y = int(top[1]) * 16, int(top[0]) * 16
    fine = np.zeros((2000, 2000), np.float32)
    spread = scores.repeat(16, 0).repeat(16, 1)
    fine[: spread.shape[0], : spread.shape[1]] = spread
    want = [
        fine[y : y + 64, x : x + 64].mean(),
        2 * fine[:64, :64].mean(),
        3 * fine[y : y + 32, x : x + 32].mean(),
    ]
    np.testing.assert_allclose(table["value"], want, rtol=1e-5)
    assert table["l0_x"].tolist() == [x, 0, x] and table["l0_width"].tolist() == [64, 64, 32]
    pixels = pixels_of(700, 451)
    np.testing.assert_allclose(table["pixels"][1], pixels[:64, :64].mean(axis=(0, 1)), rtol=1e-5)
    result = folder.result
    assert result is not None and abs(result["scores"]["sum"] - sum(want)) < 1e-3


def test_only_the_region_of_a_case_is_scored(slide: Path, tmp_path: Path) -> None:
    from lobule.geometry import Box

    case = Case("part", "p", "region", str(slide), mpp=0.5, l0_box=Box(160, 96, 320, 160))
    scan_small(Cohort((case,)), tmp_path / "r")
    reader = open_results(tmp_path / "r").case_folder("part").maps["mean"]
    scores, states = reader.read()
    inside = np.zeros(states.shape, bool)
    inside[6:16, 10:30] = True
    assert ((states == State.SCORED) == inside).all() and (states[~inside] == State.PENDING).all()
    want = mean_map(pixels_of(700, 451))
    np.testing.assert_allclose(scores[0][inside], want[inside], atol=1e-5)
    assert (scores[0][~inside] == 0).all()


def damage_tile(path: Path, index: int) -> None:
    """Overwrite one compressed tile with rubbish, in place."""
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        offset, length = page.dataoffsets[index], page.databytecounts[index]
    data = bytearray(path.read_bytes())
    data[offset : offset + length] = b"\x55" * length
    path.write_bytes(bytes(data))


def test_damaged_tile_fails_only_its_fields(slide: Path, tmp_path: Path) -> None:
    damage_tile(slide, 8)  # 6 tiles a row: column 2, row 1
    report = scan_small(cohort_of(slide), tmp_path / "r")
    assert dict(report.counts) == {"partial": 1}  # type: ignore[attr-defined]
    folder = open_results(tmp_path / "r").case_folder("one")
    scores, states = folder.maps["mean"].read()
    failed = states == State.FAILED
    assert failed.any() and (scores[0][failed] == 0).all()
    want = mean_map(pixels_of(700, 451))
    np.testing.assert_allclose(scores[0][~failed], want[~failed], atol=1e-5)
    # what failed lies around the tile: within a field of it
    rows, columns = np.nonzero(failed)
    assert rows.min() * 16 >= 128 - 112 and rows.max() * 16 <= 256 + 112
    assert columns.min() * 16 >= 256 - 112 and columns.max() * 16 <= 384 + 112
    result = folder.result
    assert result is not None and result["failed"]
    assert "column 2, row 1" in result["failed"][0]["cause"]


def test_retry_failed_scores_repaired_fields(slide: Path, tmp_path: Path) -> None:
    good = slide.read_bytes()
    stamp = slide.stat()
    scan_small(cohort_of(slide), tmp_path / "whole")
    damage_tile(slide, 8)
    scan_small(cohort_of(slide), tmp_path / "r")
    first = MeanPredictor()
    scan_small(cohort_of(slide), tmp_path / "r", predictor=first)
    assert first.forwards == 0, "failed fields are not tried again unless asked"
    second = MeanPredictor()
    scan_small(cohort_of(slide), tmp_path / "r", predictor=second, retry_failed=True)
    assert second.forwards > 0
    slide.write_bytes(good)
    assert stamp.st_size == slide.stat().st_size
    scan_small(cohort_of(slide), tmp_path / "r", retry_failed=True)
    a = open_results(tmp_path / "whole").case_folder("one").maps["mean"].scores()
    b = open_results(tmp_path / "r").case_folder("one").maps["mean"].scores()
    assert (a == b).all()


def test_failed_case_is_recorded_and_the_others_continue(slide: Path, tmp_path: Path) -> None:
    other = write_slide(tmp_path / "two.tif", pixels_of(300, 200, 1))
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"II*\x00" + b"\x07" * 300)
    gone = Case("gone", "p", "slide", str(tmp_path / "gone.tif"), mpp=0.5)
    cohort = Cohort((*cohort_of(slide), *cohort_of(broken), gone, *cohort_of(other)))
    report = scan_small(cohort, tmp_path / "r")
    assert dict(report.counts) == {"complete": 2, "failed": 2}  # type: ignore[attr-defined]
    results = open_results(tmp_path / "r")
    expected = {"complete": 2, "partial": 0, "failed": 2, "unscored": 0, "unfinished": 0, "not started": 0}
    assert results.counts() == expected
    failed = results.case_folder("gone").result
    assert failed is not None and failed["error"]["type"] == "NotReadable"
    assert "gone.tif" in failed["error"]["message"]
    lines = (tmp_path / "r" / "results.csv").read_text().splitlines()
    assert len(lines) == 5 and any(line.startswith("broken,failed,") for line in lines)
    # a rerun leaves failed cases alone, until the file is there or it is asked to
    progress = Progress()
    scan_small(cohort, tmp_path / "r", progress=progress)
    assert progress.finished == {"one": "skipped", "broken": "skipped", "two": "skipped", "gone": "failed"}
    write_slide(tmp_path / "gone.tif", pixels_of(200, 200, 3))
    scan_small(cohort, tmp_path / "r")
    assert results.case_folder("gone").status == "complete"


class NaNPredictor(MeanPredictor):
    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        out = super().forward(key, batch)["map"]
        return {"map": torch.where(out > 0.55, torch.nan, out)}


def test_scores_that_are_nan_fail_their_fields(slide: Path, tmp_path: Path) -> None:
    report = scan_small(cohort_of(slide), tmp_path / "r", predictor=NaNPredictor())
    assert dict(report.counts) == {"partial": 1}  # type: ignore[attr-defined]
    folder = open_results(tmp_path / "r").case_folder("one")
    scores, states = folder.maps["mean"].read()
    assert np.isfinite(scores).all() and (states == State.FAILED).any()
    assert "NaN or infini" in folder.result["failed"][0]["cause"]  # type: ignore[index]


class BrokenPredictor(MeanPredictor):
    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        if batch.pixels.any() and batch.pixels[0, 0, 0, 0] != 255:  # not the first row, not the measurement
            raise RuntimeError("out of memory, say")
        return super().forward(key, batch)


def test_error_of_the_model_fails_the_case(slide: Path, tmp_path: Path) -> None:
    report = scan_small(cohort_of(slide), tmp_path / "r", predictor=BrokenPredictor())
    assert dict(report.counts) == {"failed": 1}  # type: ignore[attr-defined]
    assert "out of memory, say" in report.failed["one"]  # type: ignore[attr-defined]
    # and a better model of the same bundle completes it
    scan_small(cohort_of(slide), tmp_path / "r", retry_failed=True)
    reader = open_results(tmp_path / "r").case_folder("one").maps["mean"]
    np.testing.assert_allclose(reader.scores(), mean_map(pixels_of(700, 451)), atol=1e-5)


def test_another_bundle_or_other_options_are_refused(slide: Path, tmp_path: Path) -> None:
    scan_small(cohort_of(slide), tmp_path / "r")
    with pytest.raises(ResultsError, match="another bundle"):
        scan(
            MeanPredictor(),
            {**BUNDLE, "fingerprint": "1" * 64},
            cohort_of(slide),
            tmp_path / "r",
            EVERYWHERE,
            SMALL,
        )
    # The message names only the options that differ.
    with pytest.raises(ResultsError, match=r"other options\. Expected stride null\. Found stride 8\."):
        scan_small(cohort_of(slide), tmp_path / "r", options=ScanOptions(tissue=None, stride=8))
    scan_small(cohort_of(slide), tmp_path / "r", options=ScanOptions(tissue=None, stride=8), fresh=True)


def test_shards_share_a_folder(tmp_path: Path) -> None:
    slides = [write_slide(tmp_path / f"{i}.tif", pixels_of(200 + i, 150, i)) for i in range(5)]
    for index in (1, 2):
        scan_small(cohort_of(*slides), tmp_path / "sharded", shard=(index, 2))
    scan_small(cohort_of(*slides), tmp_path / "whole")
    results = open_results(tmp_path / "sharded")
    assert results.counts()["complete"] == 5
    a, b = tree(tmp_path / "sharded"), tree(tmp_path / "whole")
    assert {k: v for k, v in a.items() if not k.startswith((".lock", "work.json"))} == b


def test_contents_of_a_result(slide: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    scan_small(cohort_of(slide), tmp_path / "r")
    elapsed = time.monotonic() - began
    seconds = json.loads((tmp_path / "r" / "cases" / "one" / "run.json").read_text())["seconds"]
    assert 0 <= seconds <= round(elapsed, 3)
    result = json.loads((tmp_path / "r" / "cases" / "one" / "result.json").read_text())
    assert result["status"] == "complete" and result["patient"] == "patient one"
    assert result["maps"][0]["cells"] == {"pending": 0, "glass": 0, "scored": 29 * 44, "failed": 0}
    assert result["images"]["slide"]["size"] == [700, 451]
    assert next(iter(result["input"].values())).startswith("sha256:")
    assert "Research use only" in result["research_use"]
    shutil.rmtree(tmp_path / "r")
