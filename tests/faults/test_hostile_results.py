"""Hostile files in a results folder cost their own case; `info` and `evaluate` show the others."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lobule.cohort import read_cohort
from lobule.errors import LobuleError
from lobule.evaluation import Options, evaluate_source, open_source
from lobule.files import write_bytes
from lobule.findings import Finding
from lobule.results import MapInfo, describe
from lobule.results.maps import MapWriter
from lobule.results.tables import TableInfo, TableWriter
from lobule.results.writing import write_findings
from tests.evaluation.support import begin, put, write_csv
from tests.faults.limited import run_limited

Change = Callable[[Path], object]

DEEP = "[" * 100_000
STATE = "maps/tumour/state/zarr.json"
NESTED = "[" * 400 + "]" * 400


def change(**fields: Any) -> Change:
    """Replace fields of the result of the case 'bad'."""

    def write(folder: Path) -> None:
        path = folder / "cases/bad/result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return write


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / "cases/bad" / name).write_text(content)


def fifo(name: str) -> Change:
    def write(folder: Path) -> None:
        path = folder / "cases/bad" / name
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)

    return write


RESULTS: dict[str, Change] = {
    "deep nesting": text("result.json", DEEP),
    "nesting within the limits of the parser": change(options=json.loads(NESTED)),
    "huge whole number": text("result.json", "1" * 1_000_000),
    "huge score": change(scores={"tumour": 10**400}),
    "score that is not a number": change(scores={"tumour": float("nan")}),
    "infinite score": text("result.json", '{"format": "lobule-result/2", "scores": {"tumour": 1e999}}'),
    "boolean score": change(scores={"tumour": True}),
    "scores as a list": change(scores=[1, 2]),
    "map with a list as name": change(maps=[{"name": [], "cells": {}}]),
    "map without cells": change(maps=[{"name": "tumour", "cells": {}}]),
    "maps as text": change(maps="maps"),
    "count as text": change(findings={"count": "5"}),
    "negative count": change(findings={"count": -5}),
    "notes as numbers": change(notes=[1]),
    "error as text": change(error="none"),
    "images as a list": change(images=["slide"]),
    "size as text": change(images={"slide": {"size": "large"}}),
    "negative size": change(images={"slide": {"size": [-1, 5]}}),
    "zero resolution": change(images={"slide": {"size": [5, 5], "mpp": [0, 0]}}),
    "a list": text("result.json", "[]"),
    "bytes that are not text": lambda folder: write_bytes(folder / "cases/bad/result.json", b"\xff\xfe\0"),
    "fifo": fifo("result.json"),
}  # fmt: skip


def make_folder(root: Path) -> Path:
    """Results of one sound and one other case, and their cohort."""
    folder = begin(root / "r", ["good", "bad"])
    for name in ("good", "bad"):
        put(folder, name, {"tumour": 0.7}, [(0.7, 5, 5)], size=(100, 100))
    write_csv(root / "cohort.csv", [
        {"case": name, "patient": name, "split": "test", "label": "tumour", "slide": f"{name}.tif"}
        for name in ("good", "bad")
    ])  # fmt: skip
    return folder


def examine(folder: str) -> dict[str, Any]:
    """What `info` and `evaluate` say of the folder."""
    data, shown = describe(folder)
    json.dumps(data, allow_nan=False)
    shown.encode()
    report: dict[str, Any] = {"info": {case["case"]: case.get("error", "") for case in data["cases"]}}
    report["settings"] = data.get("error", "")
    try:
        cohort = read_cohort(Path(folder).parent / "cohort.csv", check_files=False)
        options = Options()
        evaluation = evaluate_source(open_source(folder, options), cohort, options)
        report["evaluate"] = dict(evaluation.data["cases"]["failed"])
    except LobuleError as error:
        report["evaluate"] = str(error)
    return report


def examine_all(folders: list[str]) -> list[dict[str, Any]]:
    return [examine(folder) for folder in folders]


def examined(root: Path, changes: dict[str, Change]) -> dict[str, dict[str, Any]]:
    """Make a folder for each change, and examine all of them in one limited child."""
    folders = []
    for index, write in enumerate(changes.values()):
        folders.append(make_folder(root / str(index)))
        write(folders[-1])
    reports = run_limited("tests.faults.test_hostile_results:examine_all", list(map(str, folders)))
    return dict(zip(changes, reports, strict=True))


def test_hostile_result_affects_only_its_case(tmp_path: Path) -> None:
    for name, report in examined(tmp_path, RESULTS).items():
        assert set(report["info"]) == {"good", "bad"}, name
        assert report["info"]["good"] == "" and report["info"]["bad"].startswith("damaged: "), (name, report)
        assert list(report["evaluate"]) == ["bad"] and "bad" in report["evaluate"]["bad"], (name, report)


def settings(content: str) -> Change:
    return lambda folder: (folder / "scan.json").write_text(content)


SETTINGS: dict[str, Change] = {
    "deep nesting": settings(DEEP),
    "nesting within the limits of the parser": settings(f'{{"options": {NESTED}}}'),
    "cases as a number": settings('{"format": "lobule-result/2", "cases": 5}'),
    "cases as numbers": settings('{"format": "lobule-result/2", "cases": [5]}'),
    "bundle as text": settings('{"format": "lobule-result/2", "bundle": "b"}'),
    "not a number": settings('{"format": "lobule-result/2", "options": {"stride": NaN}}'),
    "research use as a list": settings('{"format": "lobule-result/2", "research_use": []}'),
    "a list": settings("[]"),
}


def test_hostile_settings_are_named_and_the_cases_shown(tmp_path: Path) -> None:
    for name, report in examined(tmp_path, SETTINGS).items():
        assert report["info"] == {"good": "", "bad": ""}, (name, report)
        assert report["settings"].startswith("damaged: ") and "scan.json" in report["settings"], (
            name,
            report,
        )
        assert "scan.json" in report["evaluate"], (name, report)


def unfinished_map(folder: Path) -> Path:
    """A map of the case 'bad', which has no result yet."""
    (folder / "cases/bad/result.json").unlink()
    path = folder / "cases/bad/maps/tumour"
    MapWriter(path, MapInfo("tumour", "slide", ("tumour",), 20, 30, (4.0, 4.0), (1.0, 1.0), (10, 30)))
    return path


def attributes(**fields: Any) -> Change:
    def write(folder: Path) -> None:
        path = unfinished_map(folder) / "zarr.json"
        stored = json.loads(path.read_text())
        stored["attributes"]["lobule"] |= fields
        path.write_text(json.dumps(stored))

    return write


def array(name: str, **fields: Any) -> Change:
    def write(folder: Path) -> None:
        path = unfinished_map(folder) / name / "zarr.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))

    return write


def chunk(name: str, *, as_fifo: bool = False) -> Change:
    def write(folder: Path) -> None:
        path = unfinished_map(folder) / "state/c" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path) if as_fifo else path.write_bytes(b"nothing")

    return write


MAPS: dict[str, Change] = {
    "absurd shape": attributes(shape=[10**9, 10**9]),
    "absurd shape and tiny chunks": attributes(shape=[10**6, 10**6], chunk=[1, 1]),
    "shape of another map": attributes(shape=[40, 30]),
    "negative shape": attributes(shape=[-5, 30]),
    "empty chunks": attributes(chunk=[0, 0]),
    "absurd chunks": attributes(chunk=[10**9, 10**9]),
    "strides that are not numbers": attributes(l0_stride=["x", "y"]),
    "zero strides": attributes(l0_stride=[0, 0]),
    "classes as numbers": attributes(classes=[1]),
    "array of an absurd shape": array("state", shape=[10**9, 10**9]),
    "array of absurd chunks": array(
        "state", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**9, 10**9]}}
    ),
    "array of another type": array("state", data_type="float64"),
    "chunk outside the map": chunk("99/99"),
    "damaged chunk": chunk("0/0"),
    "chunk that is a fifo": chunk("0/0", as_fifo=True),
    "metadata that is a fifo": lambda folder: (unfinished_map(folder), fifo(STATE)(folder)),
    "deep metadata": lambda folder: (unfinished_map(folder) / "zarr.json").write_text(DEEP),
}  # fmt: skip


def test_hostile_map_affects_only_its_case(tmp_path: Path) -> None:
    for name, report in examined(tmp_path, MAPS).items():
        assert report["info"]["good"] == "" and report["info"]["bad"].startswith("damaged: "), (name, report)


@pytest.mark.parametrize("name", ["²", "x", "00", "9" * 200])
def test_odd_names_beside_chunks_are_not_chunks(name: str, tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    chunk(f"{name}/0")(folder)
    data, _ = describe(folder)
    assert data["cases"][0]["maps"]["tumour"] == {"pending": 600, "glass": 0, "scored": 0, "failed": 0}


def test_names_with_control_characters_are_escaped(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    put(folder, "\x1b[31mred\udcff", {"tumour": 0.5})
    data, shown = describe(folder)
    assert "\x1b" not in shown and "\\x1b[31mred\\udcff" in shown
    json.dumps(data, ensure_ascii=False).encode()


def findings(**columns: list[Any]) -> Change:
    return lambda folder: pq.write_table(pa.table(columns), folder / "cases/bad/findings.parquet")


def test_findings_of_other_columns_are_damage(tmp_path: Path) -> None:
    changes: dict[str, Change] = {
        "no columns": findings(x=[1]),
        "text": findings(score=["high"], l0_x=["a"], l0_y=["b"]),
        "not a number": lambda folder: write_findings(folder / "cases/bad", [Finding(1, 2, float("nan"))]),
        "fifo": fifo("findings.parquet"),
    }  # fmt: skip
    for name, report in examined(tmp_path, changes).items():
        assert list(report["evaluate"]) == ["bad"], (name, report)


@pytest.mark.parametrize("content", ['{"name": "t", "rows": 5, "part_rows": 0}', DEEP, '{"name": 1}', "[]"])
def test_hostile_table_is_damage(content: str, tmp_path: Path) -> None:
    TableWriter(tmp_path / "t", TableInfo("t", 5, 5))
    (tmp_path / "t/table.json").write_text(content)
    with pytest.raises(LobuleError, match="the table cannot be read"):
        TableWriter(tmp_path / "t", TableInfo("t", 5, 5))
