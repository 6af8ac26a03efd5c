"""What is damaged in a results folder, or not the scan's, or of nothing scored: never a score, never lost."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lobule.cohort import Case, Cohort, cohort_of_paths
from lobule.errors import ConfigError, DamagedResults, ResultsError
from lobule.results import Result, describe, open_results
from lobule.scanning.contract import (
    Batch,
    EngineSettings,
    Fields,
    OpenCase,
    ScanOptions,
    Steps,
    fill_table,
)
from lobule.scanning.scan import ScanReport, scan
from tests.scanning.support import (
    BUNDLE,
    EVERYWHERE,
    SMALL,
    MeanPredictor,
    cohort_of,
    pixels_of,
    tree,
    write_slide,
)


@pytest.fixture
def slides(tmp_path: Path) -> tuple[Path, Path]:
    return write_slide(tmp_path / "a.tif", pixels_of(300, 200)), write_slide(
        tmp_path / "b.tif", pixels_of(300, 200, 1)
    )


def run(
    cohort: Cohort, out: Path, predictor: MeanPredictor | None = None, **scan_options: bool
) -> ScanReport:
    return scan(predictor or MeanPredictor(), BUNDLE, cohort, out, EVERYWHERE, SMALL, **scan_options)  # type: ignore[arg-type]


class NoNumbers(MeanPredictor):
    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        return {"map": super().forward(key, batch)["map"] * float("nan")}


class NoRows(MeanPredictor):
    """A table none of whose rows has a number, and a score all the same."""

    def sample_batch(self, engine: EngineSettings, options: ScanOptions) -> tuple[object, Batch]:
        return "rows", Batch(torch.zeros((engine.batch, 32, 32, 3), dtype=torch.uint8))

    def steps(self, case: OpenCase) -> Steps[Result]:
        boxes = np.array([[x, 0, 32, 32] for x in range(0, 256, 32)])
        lattice = case.images["slide"].lattice(level=0)
        fields = Fields(("slide",), (lattice,), np.zeros(len(boxes), np.int16), boxes)
        yield from fill_table("rows", "rows", fields, chunk_rows=4)
        return Result({"mean": 0.0})

    def forward(self, key: object, batch: Batch) -> dict[str, torch.Tensor]:
        return {"value": batch.pixels.float().mean((1, 2, 3)) * float("nan")}


@pytest.mark.parametrize("predictor", [NoNumbers(), NoRows()])
def test_case_without_a_scored_field_fails_and_has_no_score(
    slides: tuple[Path, Path], tmp_path: Path, predictor: MeanPredictor
) -> None:
    report = run(cohort_of(slides[0]), tmp_path / "r", predictor)
    assert dict(report.counts) == {"failed": 1} and "NaN or infini" in report.failed["a"]
    result = open_results(tmp_path / "r").case_folder("a").result
    assert result is not None and result["scores"] == {}
    assert "0.0" not in (tmp_path / "r" / "results.csv").read_text()


CUT = '{"1":'
SHORT = '{"format": "lobule-result/2", "status": "complete"}'
VALID_RESULT: dict[str, Any] = {
    "format": "lobule-result/2", "status": "complete", "scores": {}, "maps": [], "findings": {"count": 0},
    "notes": [], "error": None,
}  # fmt: skip
STRANGE = [
    json.dumps({**VALID_RESULT, name: value})
    for name, value in [
        ("status", "weird"), ("scores", {"mean": None}), ("maps", [1]), ("findings", {}), ("error", "boom"),
        ("failed", 3),
    ]
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "finished", "text"),
    [
        ("result.json", True, CUT),
        ("result.json", True, SHORT),
        *[("result.json", True, text) for text in STRANGE],
        ("maps/mean/zarr.json", False, CUT),
        ("failed/mean.json", False, CUT),
    ],
)
def test_damaged_file_affects_only_its_case(
    slides: tuple[Path, Path], tmp_path: Path, name: str, finished: bool, text: str
) -> None:
    run(cohort_of(*slides), tmp_path / "r")
    before = tree(tmp_path / "r")
    case = open_results(tmp_path / "r").case_folder("a").path
    if not finished:
        (case / "result.json").unlink()
    (case / name).parent.mkdir(exist_ok=True)
    (case / name).write_text(text)
    data, description = describe(tmp_path / "r")
    assert data["counts"] == {"complete": 1, "unfinished": 1}
    assert name.startswith("failed") or str(case) in description
    assert dict(run(cohort_of(slides[1]), tmp_path / "r").counts) == {"complete": 1}
    assert dict(run(cohort_of(*slides), tmp_path / "r").counts) == {"complete": 2}
    assert tree(tmp_path / "r") == before


def test_damaged_findings_are_reported(slides: tuple[Path, Path], tmp_path: Path) -> None:
    run(cohort_of(slides[0]), tmp_path / "r")
    case = open_results(tmp_path / "r").case_folder("a")
    (case.path / "findings.parquet").write_bytes(b"PAR1")
    with pytest.raises(DamagedResults, match="findings are damaged"):
        case.findings()


def test_invalid_settings_are_reported(slides: tuple[Path, Path], tmp_path: Path) -> None:
    run(cohort_of(slides[0]), tmp_path / "r")
    (tmp_path / "r" / "scan.json").write_text("[]")
    data, text = describe(tmp_path / "r")
    assert (
        "scan.json: the file does not contain the settings of a scan" in data["error"]
        and data["error"] in text
    )
    assert [case["case"] for case in data["cases"]] == ["a"]
    with pytest.raises(ResultsError, match="does not contain the settings of a scan"):
        run(cohort_of(slides[0]), tmp_path / "r")


def test_fresh_deletes_only_files_of_a_scan(slides: tuple[Path, Path], tmp_path: Path) -> None:
    precious = tmp_path / "mine" / "cases" / "precious.svs"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"a slide")
    (precious.parent / "patient 1").mkdir()
    (precious.parent / "patient 1" / "x.svs").write_bytes(b"a slide")
    for expected in ("patient 1", "precious.svs"):
        with pytest.raises(ResultsError, match=rf"{expected}.*--fresh would delete a folder"):
            run(cohort_of(slides[0]), tmp_path / "mine", fresh=True)
        (precious.parent / "patient 1" / "x.svs").unlink(missing_ok=True)
    assert precious.exists()


def test_interrupted_fresh_leaves_no_old_result(
    slides: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(cohort_of(*slides), tmp_path / "r")
    (tmp_path / "r" / "patients.json").write_text("{}")

    def refuse(path: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched, pytest.raises(ResultsError, match="permission denied"):
        patched.setattr("shutil.rmtree", refuse)
        run(cohort_of(slides[0]), tmp_path / "r", fresh=True)
    assert not (tmp_path / "r" / "cases").exists() and not (tmp_path / "r" / "patients.json").exists()
    predictor = MeanPredictor()
    run(cohort_of(slides[0]), tmp_path / "r", predictor, fresh=True)
    assert predictor.forwards > 0
    assert [case.case_id for case in open_results(tmp_path / "r").cases()] == ["a"]
    assert not (tmp_path / "r" / ".gone").exists()


def test_duplicate_case_names_are_refused(slides: tuple[Path, Path], tmp_path: Path) -> None:
    twice = Cohort(
        tuple(Case("x", name, "slide", str(path)) for name, path in zip("pq", slides, strict=True))
    )
    with pytest.raises(ConfigError, match=r"same name.*x"):
        run(twice, tmp_path / "r")


@pytest.mark.parametrize("name", ["..", ".", ".hidden"])
def test_case_names_cannot_escape_the_results_folder(
    slides: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    run(Cohort((Case(name, "p", "slide", str(slides[0]), mpp=0.5),)), tmp_path / "r")
    (case,) = open_results(tmp_path / "r").cases()
    assert case.case_id == name and case.status == "complete"
    assert case.path.parent == tmp_path / "r" / "cases"


def test_replacing_a_result_of_another_slide_logs_a_warning(
    slides: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (Cohort((Case("x", "p", "slide", str(path), mpp=0.5),)) for path in slides)
    run(first, tmp_path / "r")
    with caplog.at_level(logging.WARNING, "lobule.scan"):
        run(first, tmp_path / "r")
        assert not caplog.messages
        run(second, tmp_path / "r")
    assert "Case x" in caplog.text and "scanning it again" in caplog.text


def test_file_name_that_is_not_utf_8_is_scanned(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller.tif")
    slide = write_slide(tmp_path / "m.tif", pixels_of(300, 200)).rename(tmp_path / name)
    report = run(cohort_of_paths([slide], mpp=0.5), tmp_path / "r")
    assert dict(report.counts) == {"complete": 1}
    case = open_results(tmp_path / "r").case_folder("M?ller")
    assert case.result is not None and list(case.result["input"]) == [str(slide)]
    slide.unlink()
    report = run(cohort_of_paths([slide], mpp=0.5), tmp_path / "other")
    assert dict(report.counts) == {"failed": 1} and (tmp_path / "other" / "results.csv").read_text()
