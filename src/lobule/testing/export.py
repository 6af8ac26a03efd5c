"""Conformance suite for export formats. The tests of a format inherit `ExportConformance`.

A format outside this repository is tested in one short file:

    from lobule.exports import EXPORTS
    from lobule.testing.export import ExportConformance

    EXPORTS["mine"] = Export("mine", "my format", write)   # a value, or "module:NAME"

    class TestMine(ExportConformance):
        format = "mine"

The suite exports a results folder that `write_known_results` creates: a slide with bounds, whose findings
have known outlines, and cases in every other state.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lobule.errors import ConfigError, ResultsError
from lobule.exports.export import find_export
from lobule.exports.options import ExportOptions
from lobule.exports.run import ExportReport, export_results, size_of
from lobule.files import write_json
from lobule.findings import Finding, Outline
from lobule.geometry import Box
from lobule.results import Results, open_results
from lobule.results.folder import begin_results
from lobule.results.maps import MapInfo, MapWriter
from lobule.results.result import FORMAT, RESEARCH_USE
from lobule.results.writing import map_summaries, write_findings
from lobule.stitch import State

PATIENT = "Ada Secret"
SIZE = (4096, 3072)
BOUNDS = Box(640, 320, 2816, 2304)
MPP = 0.25
STRIDE = 32
CLASSES = ("normal", "tumour")
SQUARES = (Box(960, 640, 256, 256), Box(1600, 1280, 512, 256), Box(2560, 1920, 128, 128))
"""Level-0 boxes with a score of 0.9 in the map; the first ones are findings with an outline."""
HOLE = Box(1024, 704, 64, 64)
"""A hole in the first square."""
STRANGE_NAME = "Fälle/äöü 7: «a»"
EMPTY = "nothing found"


def ring_of(box: Box) -> np.ndarray[Any, np.dtype[np.float64]]:
    corners = [(box.x, box.y), (box.right, box.y), (box.right, box.bottom), (box.x, box.bottom)]
    return np.array(corners, np.float64)


def known_findings() -> list[Finding]:
    """A polygon with a hole, a polygon, a box and a point."""
    outlines = [Outline(ring_of(SQUARES[0]), (ring_of(HOLE),)), Outline(ring_of(SQUARES[1]))]
    findings = [
        Finding(
            int(outline.exterior[:, 0].mean()), int(outline.exterior[:, 1].mean()), 0.9 - index / 10,
            "polygon", "tumour", polygon=(outline,), size_um=90.5 + 300 * index,
            area_um2=outline.area * MPP**2, lesion_class="itc" if index == 0 else "micro", cells=64,
        )
        for index, outline in enumerate(outlines)
    ]  # fmt: skip
    x, y = SQUARES[2].x + 64, SQUARES[2].y + 64
    return [*findings, Finding(x, y, 0.7, "box", "tumour", SQUARES[2]), Finding(700, 400, 0.25)]


def known_map() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Scores of both classes and states of the map: glass at the top, one failed cell."""
    rows, columns = SIZE[1] // STRIDE, SIZE[0] // STRIDE
    tumour = np.full((rows, columns), 0.125, np.float32)
    for square in SQUARES:
        tumour[square.y // STRIDE : square.bottom // STRIDE, square.x // STRIDE : square.right // STRIDE] = (
            0.9
        )
    states = np.full((rows, columns), State.SCORED, np.uint8)
    states[:10], states[50, 60] = State.GLASS, State.FAILED
    scores = np.stack([1 - tumour, tumour])
    scores[:, states != State.SCORED] = 0
    return scores, states


def write_known_results(
    root: Path, cases: Sequence[str] = ("squares", EMPTY, STRANGE_NAME), *, incomplete_cases: bool = True
) -> Results:
    """Write a results folder.

    Args:
        root: Parent of the folder `results`.
        cases: Names of the complete cases, which have the known findings, except for `EMPTY`.
        incomplete_cases: Add cases that are partial, unscored, failed, unfinished, damaged and not started.
    """
    names = [
        *cases,
        *(["partial", "unscored", "failed", "unfinished", "damaged", "waiting"] if incomplete_cases else []),
    ]
    bundle = {"method": "scannet", "fingerprint": "ab" * 32, "classes": list(CLASSES)}
    results = begin_results(root / "results", {"bundle": bundle, "options": {}, "cases": names})
    for name in cases:
        write_known_case(results, name, [] if name == EMPTY else known_findings())
    if incomplete_cases:
        _write_incomplete_cases(results)
    return open_results(results.path)


def write_known_case(results: Results, name: str, findings: Sequence[Finding], **fields: Any) -> None:
    """Write one case with the known map. `fields` replace fields of its result."""
    folder = results.case_folder(name)
    scores, states = known_map()
    um = (STRIDE * MPP, STRIDE * MPP)
    info = MapInfo("tumour", "slide", CLASSES, len(states), states.shape[1], (STRIDE, STRIDE), um, (96, 64))
    writer = MapWriter(folder.map_path("tumour"), info)
    for chunk in info.chunks:
        block = info.chunk_cells(chunk)
        writer.write_chunk(chunk, scores[:, *block], states[block])
    path = f"/no/such/folder/{name.replace('/', '_')}.tif"
    hashes = {path: "sha256:" + "0123456789abcdef" * 4}
    plan = {"case": name, "input": hashes, "mpp": None, "l0_box": None, "views": {}}
    write_json(folder.path / "plan.json", plan)
    write_findings(folder.path, findings)
    image = {
        "path": path, "format": "tiff", "size": list(SIZE), "mpp": [MPP, MPP], "mpp_source": "the test",
        "bounds": [BOUNDS.x, BOUNDS.y, BOUNDS.width, BOUNDS.height],
    }  # fmt: skip
    result = {
        "format": FORMAT, "case": name, "patient": PATIENT, "status": "complete", "scores": {"tumour": 0.875},
        "maps": map_summaries(folder), "tables": [], "findings": {"count": len(findings)}, "notes": [],
        "error": None, "bundle": results.settings["bundle"], "engine": {}, "lobule": "0.0",
        "research_use": RESEARCH_USE, "images": {"slide": image}, "failed": [], "input": hashes,
    }  # fmt: skip
    write_json(folder.path / "result.json", {**result, **fields})


def _write_incomplete_cases(results: Results) -> None:
    failed_field = {"pass": "tumour", "image": "slide", "l0_box": [0, 0, 512, 512], "cause": "a bad tile"}
    write_known_case(results, "partial", known_findings(), status="partial", failed=[failed_field])
    write_known_case(
        results, "unscored", [], status="unscored", scores={}, notes=["Nothing was scored: no tissue."]
    )
    error = {"type": "DamagedFile", "message": "the file is cut off", "subject": None, "remedy": None}
    write_known_case(results, "failed", [], status="failed", scores={}, error=error)
    write_known_case(results, "unfinished", [])
    (results.case_folder("unfinished").path / "result.json").unlink()
    write_known_case(results, "damaged", [])
    (results.case_folder("damaged").path / "result.json").write_text("{")


class ExportConformance:
    """Inherit this class and set `format`."""

    format: str
    options = ExportOptions()
    volatile: tuple[str, ...] = ()
    """Patterns of files that contain a time and therefore differ between two exports."""
    says_research_use = True
    """Whether the format can say that it is for research use only, inside its files."""
    needs_patients = False
    """Whether the format cannot be written without the names of patients."""
    names_patients = True
    """Whether the format writes patients if `show_patients` is set."""

    @pytest.fixture(scope="class")
    @classmethod
    def known_results(cls, tmp_path_factory: pytest.TempPathFactory) -> Results:
        return write_known_results(tmp_path_factory.mktemp("known"))

    @pytest.fixture(scope="class")
    @classmethod
    def exported(
        cls, known_results: Results, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, ExportReport]:
        """The folder and the report of one export of all cases, for tests that only read it."""
        out = tmp_path_factory.mktemp("exported") / "out"
        return out, export_results(known_results.path, cls.format, out, options=cls.options)

    @pytest.fixture
    def results(self, known_results: Results, tmp_path: Path) -> Results:
        """A copy of the results, which a test may change."""
        return open_results(shutil.copytree(known_results.path, tmp_path / "results"))

    def export(self, results: Results, out: Path, **options: Any) -> ExportReport:
        return export_results(results.path, self.format, out, options=self.options, **options)

    def contents(self, folder: Path) -> dict[str, bytes]:
        """Return every visible file below a folder that is the same in each export."""
        files = (item for item in sorted(folder.rglob("*")) if item.is_file())
        return {
            item.relative_to(folder).as_posix(): item.read_bytes()
            for item in files
            if not any(name.startswith(".lo") for name in item.relative_to(folder).parts)
            and not any(item.match(pattern) for pattern in self.volatile)
        }

    # -- what is written ----------------------------------------------------------------------------------

    def test_every_case_is_accounted_for(
        self, exported: tuple[Path, ExportReport], known_results: Results
    ) -> None:
        _, report = exported
        assert [record.case for record in report.records] == known_results.planned()
        assert {record.case for record in report.exported} == {"squares", EMPTY, STRANGE_NAME, "partial"}
        for record in report.records:
            assert record.exported or record.notes or record.error, record.case

    def test_the_report_lists_the_files(self, exported: tuple[Path, ExportReport]) -> None:
        out, report = exported
        sizes = {name: size for record in report.records for name, size in record.files.items()}
        assert sizes or report.files
        assert all(size_of(out / name) == size for name, size in sizes.items())
        owned = {*sizes, *report.files, f"{self.format}.export.json"}
        for item in out.rglob("*"):
            name = item.relative_to(out).as_posix()
            if item.is_file() and not name.startswith(".lo"):
                assert any(name == one or name.startswith(f"{one}/") for one in owned), name

    def test_states_of_cases_are_explained(self, exported: tuple[Path, ExportReport]) -> None:
        records = {record.case: record for record in exported[1].records}
        expected = {
            "unscored": "no tissue", "failed": "cut off", "unfinished": "not finished",
            "waiting": "not scanned", "partial": "1 fields could not be read", "squares": "is gone",
        }  # fmt: skip
        for case, text in expected.items():
            assert text in " ".join(records[case].notes), (case, records[case].notes)
        assert records["damaged"].error is not None and not records["damaged"].exported

    def test_research_use(self, exported: tuple[Path, ExportReport]) -> None:
        contents = self.contents(exported[0])
        assert RESEARCH_USE.encode() in (exported[0] / f"{self.format}.export.json").read_bytes()
        contents.pop(f"{self.format}.export.json", None)
        if self.says_research_use:
            assert any(b"esearch use only" in data for data in contents.values())

    def test_patients_are_not_named(self, exported: tuple[Path, ExportReport]) -> None:
        if self.needs_patients:
            pytest.skip("the format needs the names of patients")
        for name, data in self.contents(exported[0]).items():
            assert b"Secret" not in data, name

    def test_patients_are_named_if_requested(self, known_results: Results, tmp_path: Path) -> None:
        results = known_results
        options = ExportOptions(show_patients=True)
        if "show_patients" not in find_export(self.format).supports:
            with pytest.raises(ConfigError, match="show_patients"):
                export_results(results.path, self.format, tmp_path / "out", options=options)
        elif self.names_patients:
            export_results(results.path, self.format, tmp_path / "out", options=options)
            assert any(b"Secret" in data for data in self.contents(tmp_path / "out").values())

    def test_an_export_gives_the_same_bytes_again(
        self, exported: tuple[Path, ExportReport], known_results: Results, tmp_path: Path
    ) -> None:
        report = self.export(known_results, tmp_path / "again", cases=["squares"])
        first, second = self.contents(exported[0]), self.contents(tmp_path / "again")
        about_all = {*report.files, *exported[1].files, f"{self.format}.export.json"}
        assert second.keys() <= first.keys()
        assert [name for name in second if name not in about_all and first[name] != second[name]] == []

    # -- resuming -----------------------------------------------------------------------------------------

    def test_unchanged_cases_are_skipped(
        self, exported: tuple[Path, ExportReport], known_results: Results
    ) -> None:
        out, first = exported
        times = dict(self._times(out, first))
        second = self.export(known_results, out)
        assert second.skipped == len(first.exported) == 4 and second.records == first.records
        assert dict(self._times(out, second)) == times

    def _times(self, out: Path, report: ExportReport) -> Iterator[tuple[str, int]]:
        for record in report.records:
            for name in record.files:
                yield name, (out / name).stat().st_mtime_ns

    def test_changed_and_damaged_cases_are_written_again(
        self, exported: tuple[Path, ExportReport], results: Results, tmp_path: Path
    ) -> None:
        out = Path(shutil.copytree(exported[0], tmp_path / "out"))
        write_findings(results.case_folder("squares").path, known_findings()[:1])
        assert self.export(results, out).skipped == 3
        files = [name for record in exported[1].records if record.case == EMPTY for name in record.files]
        items = [item for name in files for item in [out / name, *(out / name).rglob("*")] if item.is_file()]
        if any(item.stat().st_size for item in items):
            damaged = max(items, key=lambda item: item.stat().st_size)
            damaged.write_bytes(b"")
            assert self.export(results, out).skipped == 3
            assert damaged.stat().st_size > 0

    def test_a_failure_leaves_no_partial_files(
        self, known_results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The disk fills up when the first case has been written, before its files get their names."""
        import lobule.exports.run as run

        def full(folder: Path) -> None:
            raise OSError(28, "No space left on device", str(folder / "x"))

        with monkeypatch.context() as patch:
            patch.setattr(run, "flush_all", full)
            with pytest.raises(ResultsError, match="no space is left"):
                self.export(known_results, tmp_path / "out", cases=["squares"])
        assert self.contents(tmp_path / "out") == {}
        assert len(self.export(known_results, tmp_path / "out", cases=["squares"]).exported) == 1

    def test_files_of_others_are_not_overwritten(
        self, exported: tuple[Path, ExportReport], known_results: Results, tmp_path: Path
    ) -> None:
        record = next(record for record in exported[1].records if record.case == "squares")
        files = [*record.files, *exported[1].files]
        target = tmp_path / "out" / next(n for n in files if not any(Path(n).match(p) for p in self.volatile))
        target.parent.mkdir(parents=True)
        target.write_bytes(b"of someone else")
        with pytest.raises(ResultsError, match="did not write it"):
            self.export(known_results, tmp_path / "out", cases=["squares"])
        assert target.read_bytes() == b"of someone else"
