"""The division of a cohort into shards, and the estimates of work that it uses."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lobule.cohort import Case, Cohort
from lobule.errors import ConfigError, ResultsError
from lobule.geometry import Box
from lobule.results import open_results
from lobule.results.locks import lock_folder
from lobule.scanning.contract import ScanOptions
from lobule.scanning.scan import scan
from lobule.scanning.shards import SMALLEST_WORK, estimate, shard_of, work_of
from tests.scanning.support import BUNDLE, EVERYWHERE, SMALL, MeanPredictor, pixels_of, tree, write_slide


def cases_of(count: int) -> list[Case]:
    return [
        Case(f"case {index}", f"patient {index}", "slide", path=f"/{index}.tif") for index in range(count)
    ]


@given(st.lists(st.floats(0.1, 1e4) | st.none(), max_size=60), st.integers(1, 80))
def test_the_union_of_shards_is_the_cohort_and_no_case_is_in_two(
    work: list[float | None], count: int
) -> None:
    cases = cases_of(len(work))
    estimates = {case.id: value for case, value in zip(cases, work, strict=True) if value is not None}
    shards = [shard_of(cases, estimates, (index, count)) for index in range(1, count + 1)]
    assert Counter(case.id for shard in shards for case in shard) == Counter(case.id for case in cases)
    order = {case.id: index for index, case in enumerate(cases)}
    for shard in shards:
        positions = [order[case.id] for case in shard]
        assert positions == sorted(positions)


@pytest.mark.parametrize("count", [2, 7, 16, 40])
def test_shards_of_a_thousand_varied_cases_differ_by_less_than_a_tenth(count: int) -> None:
    cases = cases_of(1000)
    # A log-normal distribution is as wide as tissue areas: from needle biopsies to whole resections.
    areas = np.random.default_rng(5).lognormal(4, 1.0, 1000)
    estimates = {case.id: float(area) for case, area in zip(cases, areas, strict=True)}
    sums = [
        sum(estimates[case.id] for case in shard_of(cases, estimates, (index, count)))
        for index in range(1, count + 1)
    ]
    mean = float(areas.sum()) / count
    assert max(abs(total / mean - 1) for total in sums) < 0.1
    # Every n-th case, the usual division, is not that balanced for many shards.
    if count == 40:
        strided = [float(areas[index::count].sum()) for index in range(count)]
        assert max(abs(total / mean - 1) for total in strided) > 0.1


@pytest.fixture
def slides(tmp_path: Path) -> Cohort:
    """Slides of white glass with squares of tissue that have from 0 to 3 mm² at 4 µm/px."""
    cases = []
    for index, side_px in enumerate((0, 150, 300, 433)):
        pixels = np.full((600, 800, 3), 250, np.uint8)
        square = (
            pixels_of(side_px, side_px, index) // 3 + np.array([140, 40, 120], np.uint8) if side_px else 0
        )
        pixels[40 : 40 + side_px, 60 : 60 + side_px] = square
        path = write_slide(tmp_path / f"{index}.tif", pixels)
        cases.append(Case(f"{index}", f"patient {index}", "slide", str(path), mpp=4.0))
    return Cohort(tuple(cases))


def test_work_is_the_area_of_the_tissue(slides: Cohort) -> None:
    estimates = [estimate(case, ScanOptions()) for case in slides]
    assert estimates[0] == SMALLEST_WORK
    for side_px, value in zip((150, 300, 433), estimates[1:], strict=True):
        assert value == pytest.approx((side_px * 4e-3) ** 2, rel=0.15)


def test_work_of_whole_slides_and_of_regions(slides: Cohort) -> None:
    case = slides["3"]
    assert estimate(case, ScanOptions(tissue=None)) == pytest.approx(800 * 600 * 16e-6)
    region = Case("r", "p", "region", case.path, mpp=4.0, l0_box=Box(60, 40, 200, 100))
    assert estimate(region, ScanOptions()) == pytest.approx(200 * 100 * 16e-6, rel=0.1)


def test_unreadable_slide_counts_as_the_median(slides: Cohort, tmp_path: Path) -> None:
    missing = Case("missing", "p", "slide", str(tmp_path / "missing.tif"), mpp=4.0)
    root = tmp_path / "r"
    root.mkdir()
    work = work_of([*slides, missing], root, ScanOptions(), 2)
    assert work["missing"] == pytest.approx(np.median([work[case.id] for case in slides]), abs=1e-3)
    # The stored estimates are used again, without reading the slides.
    for case in slides:
        Path(case.path or "").unlink()
    assert work_of([*slides, missing], root, ScanOptions(), 2) == work


def test_shards_give_the_bytes_of_a_whole_scan(slides: Cohort, tmp_path: Path) -> None:
    scan(MeanPredictor(), BUNDLE, slides, tmp_path / "whole", ScanOptions(), SMALL)
    counts = []
    for index in (1, 2, 2):  # The second shard is also run twice.
        report = scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", ScanOptions(), SMALL, shard=(index, 2))
        counts.append(sum(report.counts.values()))
    assert counts[0] + counts[1] == 4 and min(counts) > 0
    sharded = {n: b for n, b in tree(tmp_path / "r").items() if not n.startswith((".lock", "work.json"))}
    assert sharded == tree(tmp_path / "whole")


def test_the_largest_slide_is_alone_in_its_shard(slides: Cohort, tmp_path: Path) -> None:
    report = scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", ScanOptions(), SMALL, shard=(1, 2))
    assert [case.case_id for case in open_results(tmp_path / "r").cases()] == ["3"]
    assert sum(report.counts.values()) == 1
    assert set(json.loads((tmp_path / "r" / "work.json").read_text())["cases"]) == {"0", "1", "2", "3"}


def test_two_shards_at_once_estimate_the_work_once(
    slides: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    estimated: list[str] = []

    def counting(case: Case, options: ScanOptions) -> float | None:
        estimated.append(case.id)
        return float(case.id) + 1

    monkeypatch.setattr("lobule.scanning.shards.estimate", counting)
    meet = threading.Barrier(2)

    def run(index: int) -> None:
        meet.wait()
        scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", EVERYWHERE, SMALL, shard=(index, 2))

    threads = [threading.Thread(target=run, args=(index,)) for index in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(estimated) == ["0", "1", "2", "3"]
    assert open_results(tmp_path / "r").counts()["complete"] == 4


def test_a_shard_of_another_cohort_is_refused_while_one_is_running(slides: Cohort, tmp_path: Path) -> None:
    with (
        lock_folder(tmp_path / "r", (1, 2), "0" * 64),
        pytest.raises(ResultsError, match="another cohort"),
    ):
        scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", EVERYWHERE, SMALL, shard=(2, 2))
    scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", EVERYWHERE, SMALL, shard=(2, 2))


def test_a_shard_that_does_not_exist_is_refused(slides: Cohort, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no shard 3 of 2"):
        scan(MeanPredictor(), BUNDLE, slides, tmp_path / "r", EVERYWHERE, SMALL, shard=(3, 2))
    assert not (tmp_path / "r").exists()
