"""The results folder: `scan.json` with fixed settings, and a folder per case with `result.json`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from lobule.errors import DamagedResults, NotReadable, ResultsError
from lobule.files import case_folder_name, make_folder, read_json, results_error, write_csv, write_json
from lobule.results import checks
from lobule.results.map_files import GROUP
from lobule.results.maps import MAKING, MapReader
from lobule.results.result import COMPLETE, FAILED, FORMAT, PARTIAL, RESEARCH_USE, UNSCORED
from lobule.results.runs import RUNS
from lobule.results.tables import Columns, TableReader
from lobule.results.work import WORK

SCAN = "scan.json"
PLAN = "plan.json"
RESULT = "result.json"
IS_VALID: dict[str, Callable[[Any], bool]] = {
    "status": lambda status: status in (COMPLETE, PARTIAL, FAILED, UNSCORED),
    "scores": checks.are_scores,
    "maps": checks.are_maps,
    "images": lambda images: images is None or checks.are_images(images),
    "findings": lambda findings: checks.is_count(findings["count"]),
    "notes": checks.is_text_list,
    "error": lambda error: error is None or isinstance(error["message"], str),
    "failed": lambda failed: isinstance(failed, list | None),
}
"""Checks of the fields of `result.json` that other code reads."""
PATIENTS = "patients.json"
"""File with the hashes of the bundle's training patients, which stay available without the bundle."""
COPY_OF = ".copy-of"
"""File of a copy of results from an object store, with their URL. Reviews in a copy would be lost."""
GONE = ".gone"
"""Folder to which cases are moved before they are deleted, so that no case is ever partly deleted."""


def _holds(sound: Callable[[Any], bool], value: object) -> bool:
    try:
        return sound(value)
    except (AttributeError, KeyError, TypeError):
        return False


class CaseFolder:
    """The results of one case on disk, finished or not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.case_id = unquote(path.name)

    @property
    def result(self) -> dict[str, Any] | None:
        """`result.json`, or None while the case is not finished."""
        path = self.path / RESULT
        if not path.exists():
            return None
        try:
            result: dict[str, Any] = read_json(path, checks.LARGEST_JSON)
        except NotReadable as error:
            if not path.exists():  # A scan has just removed the result to continue the case.
                return None
            raise DamagedResults("the result cannot be read", subject=path, actual=error.problem) from error
        _require_format(result, path)
        if damaged := [name for name, is_valid in IS_VALID.items() if not _holds(is_valid, result.get(name))]:
            actual = "invalid values of " + ", ".join(damaged)
            raise DamagedResults("the result is damaged", subject=path, actual=actual)
        return result

    @property
    def status(self) -> str:
        """complete, partial, failed, unscored or unfinished; a damaged result counts as unfinished."""
        try:
            result = self.result
        except ResultsError:
            return "unfinished"
        return "unfinished" if result is None else str(result["status"])

    @property
    def maps(self) -> dict[str, MapReader]:
        """Maps by name, readable while the scan still runs."""
        return {name: MapReader(path) for name, path in self.map_paths().items()}

    def map_paths(self) -> dict[str, Path]:
        """Folders of the maps by name, sorted by the names of the folders."""
        root = self.path / "maps"
        try:
            names = sorted(entry.name for entry in os.scandir(root))
        except (FileNotFoundError, NotADirectoryError):
            return {}
        paths = [root / name for name in names if not name.endswith(MAKING)]
        return {unquote(path.name): path for path in paths if (path / GROUP).exists()}

    @property
    def tables(self) -> dict[str, TableReader]:
        return {unquote(path.name): TableReader(path) for path in self._table_paths()}

    @property
    def table_names(self) -> list[str]:
        """The names of the tables, sorted."""
        return sorted(unquote(path.name) for path in self._table_paths())

    def _table_paths(self) -> list[Path]:
        root = self.path / "tables"
        return [path.parent for path in sorted(root.glob("*/table.json"))] if root.exists() else []

    def findings(self) -> Columns:
        """Return the findings as columns. Without findings, the columns are empty."""
        from lobule.results.parquet import read_parquet

        path = self.path / "findings.parquet"
        return read_parquet(path, "the findings are damaged") if path.exists() else {}

    def map_path(self, name: str) -> Path:
        return self.path / "maps" / quote(name, safe="")

    def table_path(self, name: str) -> Path:
        return self.path / "tables" / quote(name, safe="")

    def clear(self) -> None:
        """Delete everything of this case. The plan goes last, so an interrupted deletion can be detected."""
        try:
            (self.path / RESULT).unlink(missing_ok=True)
            for path in sorted(self.path.iterdir(), key=lambda path: path.name == PLAN):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        except FileNotFoundError:
            return
        except OSError as error:
            raise results_error(error, self.path) from error

    def clear_stores(self, keep: Collection[str]) -> None:
        """Delete the maps, tables and failure lists of all passes except `keep`."""
        kept_names = {quote(name, safe="") for name in keep}
        try:
            for path in [*self.path.glob("maps/*"), *self.path.glob("tables/*")]:
                if path.name not in kept_names:
                    gone = path.with_name(path.name + MAKING)  # A store is never partly deleted.
                    shutil.rmtree(gone, ignore_errors=True)
                    path.rename(gone)
                    shutil.rmtree(gone)
            for path in self.path.glob("failed/*.json"):
                if path.stem not in kept_names:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise results_error(error, self.path) from error


@dataclass(frozen=True)
class Results:
    """A results folder. Reading it needs neither torch nor the bundle."""

    path: Path

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that were fixed when the scan began."""
        try:
            settings: dict[str, Any] = read_json(self.path / SCAN, checks.LARGEST_JSON)
            if not isinstance(settings, dict):
                raise ResultsError("the file does not contain the settings of a scan")
        except ResultsError as error:
            raise DamagedResults(
                error.problem, subject=self.path / SCAN, expected=error.expected, remedy="Use --fresh"
            ) from error
        if wrong := checks.wrong_settings(settings):
            raise DamagedResults(
                "the settings of the scan are damaged",
                subject=self.path / SCAN,
                actual=f"invalid values of {', '.join(wrong)}",
                remedy="Scan into another folder, or use --fresh",
            )
        return settings

    def case_folder(self, case_id: str) -> CaseFolder:
        return CaseFolder(self.path / "cases" / case_folder_name(case_id))

    def cases(self) -> Iterator[CaseFolder]:
        root = self.path / "cases"
        for path in sorted(root.iterdir()) if root.is_dir() else ():
            if path.is_dir():
                yield CaseFolder(path)

    def planned(self) -> list[str]:
        """Return the names of all cases of the scan, in the order of the cohort."""
        return [str(name) for name in self.settings.get("cases", [])]

    def counts(self) -> dict[str, int]:
        """Return the number of cases in each status, including planned cases that were not started."""
        totals = dict.fromkeys((COMPLETE, PARTIAL, FAILED, UNSCORED, "unfinished", "not started"), 0)
        started = set()
        for case in self.cases():
            totals[case.status] += 1
            started.add(case.case_id)
        totals["not started"] = sum(1 for name in self.planned() if name not in started)
        return totals


def open_results(path: str | Path) -> Results:
    """Open a results folder, finished or still being written.

    Raises:
        ResultsError: The path is not a results folder, or has another format.
    """
    results = Results(Path(path))
    if not (results.path / SCAN).is_file():
        raise ResultsError(
            "not a results folder",
            subject=path,
            expected=f"a folder with {SCAN}",
            remedy="Create one with `lobule scan`",
        )
    _require_format(results.settings, results.path / SCAN)
    return results


def _require_format(content: Any, path: Path) -> None:
    """Refuse results that another version of Lobule wrote."""
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise ResultsError(
            "another version of Lobule wrote these results",
            subject=path,
            expected=f"format {FORMAT}",
            actual="no format" if version is None else f"format {str(version)[:80]}",
            remedy="Create them again: lobule scan BUNDLE COHORT --out FOLDER --fresh",
        )


def begin_results(path: str | Path, settings: Mapping[str, Any], *, fresh: bool = False) -> Results:
    """Create a results folder, or continue an existing one with the same settings.

    The list of cases may grow: further cases can be scanned into the same folder.

    Args:
        path: The results folder.
        settings: Bundle, options and cases of the scan.
        fresh: Delete an earlier scan in the folder first.

    Raises:
        ResultsError: The folder contains results of another bundle or with other options.
    """
    root = make_folder(path)
    scan = root / SCAN
    new_settings = {"format": FORMAT, "research_use": RESEARCH_USE, **settings}
    if fresh:
        _delete_scan(root)
    elif scan.exists() and not any(root.glob("cases/*")) and "engine" not in Results(root).settings:
        pass  # Nothing was scanned yet, so the settings may still change.
    elif scan.exists():
        before = open_results(root).settings
        _check_settings(root, before, new_settings)
        cases = list(dict.fromkeys([*before.get("cases", []), *new_settings.get("cases", [])]))
        new_settings = {**before, "cases": cases}
    elif any(root.glob("cases/*")):
        raise ResultsError(
            f"the folder contains cases but no {SCAN}", subject=root, remedy="Use another folder, or --fresh"
        )
    if not scan.exists() or read_json(scan) != new_settings:
        write_json(scan, new_settings)
    return Results(root)


def record_engine(
    results: Results, engine: Mapping[str, Any], cards: Mapping[str, Any] | None = None
) -> None:
    """Write the engine settings into `scan.json`. Afterwards, only `pieces` may change.

    The caller must hold the lock of the folder or of its settings (`lock_settings`).

    Args:
        results: The results folder.
        engine: The engine settings.
        cards: The card on which they were measured, and all cards, if there are several.
    """
    further = {} if cards is None else {"cards": dict(cards)}
    write_json(results.path / SCAN, {**results.settings, "engine": dict(engine), **further})


def record_pieces(results: Results, pieces: int) -> None:
    """Write into `scan.json` that batches are computed in so many pieces from now on.

    The caller must hold the lock as for `record_engine`.
    """
    engine = results.settings["engine"]
    record_engine(results, {**engine, "pieces": max(pieces, engine.get("pieces", 1))})


def store_training_patients(results: str | Path, fingerprint: str, patients: Collection[str]) -> None:
    """Write the hashes of the training patients of a bundle into the results that the bundle produced."""
    root = Path(results)
    scan = root / SCAN
    # After a scan that was rejected, the folder still contains the results of another bundle.
    if scan.is_file() and read_json(scan).get("bundle", {}).get("fingerprint") == fingerprint:
        write_json(root / PATIENTS, {"fingerprint": fingerprint, "patients": sorted(patients)})


def _delete_scan(root: Path) -> None:
    """Delete an earlier scan and nothing else, because the folder may contain other files of the user."""
    cases, removed = root / "cases", root / GONE
    for path in sorted(cases.iterdir()) if cases.is_dir() else ():
        if not _is_case(path):
            problem = "--fresh would delete a folder that is not a result"
            raise ResultsError(problem, subject=path, remedy="Use another folder")
    try:
        if removed.exists():
            shutil.rmtree(removed)
        if cases.exists():
            cases.rename(removed)
        for name in ("engine.json", SCAN, PATIENTS, WORK, "results.csv", "run.json"):
            (root / name).unlink(missing_ok=True)
        if removed.exists():
            shutil.rmtree(removed)
        shutil.rmtree(root / RUNS, ignore_errors=True)
    except OSError as error:
        raise results_error(error, root) from error


def _is_case(path: Path) -> bool:
    """Whether a scan created this path. It may be empty if the scan was killed; hidden files do not count."""
    if not path.is_dir():
        return path.name.startswith(".")
    has_results = (path / PLAN).exists() or (path / RESULT).exists()
    return has_results or all(item.name.startswith(".") for item in path.iterdir())


def _check_settings(root: Path, before: Mapping[str, Any], new_settings: Mapping[str, Any]) -> None:
    for key, word in (("bundle", "another bundle"), ("options", "other options")):
        old_values, new_values = dict(before.get(key) or {}), dict(new_settings.get(key) or {})
        names = sorted({*old_values, *new_values})
        if names := [name for name in names if old_values.get(name) != new_values.get(name)]:
            raise ResultsError(
                f"this folder contains results of {word}",
                subject=root,
                expected=", ".join(f"{name} {json.dumps(old_values.get(name))}" for name in names),
                actual=", ".join(f"{name} {json.dumps(new_values.get(name))}" for name in names),
                remedy="Use another results folder, or start over with --fresh",
            )
    if before.get("refinement") != new_settings.get("refinement"):
        raise ResultsError(
            "another version of Lobule refined these results by another rule",
            subject=root,
            expected=f"rule {new_settings.get('refinement')}",
            actual=f"rule {before.get('refinement', 1)}",
            remedy="Use another results folder, continue with that version, or start over with --fresh",
        )


SUMMARISED = ("status", "scores", "findings", "error", "notes")
"""The fields of a result that `write_summary` reads."""


def write_summary(
    results: Results, loaded: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, dict[str, Any]]:
    """Write `results.csv`, with one row per case, and return the rows by case.

    Args:
        results: The results folder.
        loaded: Results on disk that the caller has read or written, by case; at least their fields
            `SUMMARISED`. They are not read again.
    """
    rows: list[dict[str, Any]] = []
    names: dict[str, None] = {}
    for case in results.cases():
        cause = None
        try:
            result = (loaded or {}).get(case.case_id) or case.result
        except ResultsError as error:
            result, cause = None, str(error)
        if result is None:
            rows.append({"case": case.case_id, "status": "unfinished", "error": cause})
            continue
        scores = result.get("scores", {})
        names.update(dict.fromkeys(scores))
        row = {**scores, "case": case.case_id, "status": result["status"]}
        row |= {"findings": result.get("findings", {}).get("count", "")}
        row |= {"error": (result.get("error") or {}).get("message", "")}
        row |= {"note": "; ".join(map(str, result["notes"])) if result["status"] == UNSCORED else ""}
        rows.append(row)
    columns = ["case", "status", *names, "findings", "error", "note"]
    write_csv(results.path / "results.csv", columns, rows)
    return {row["case"]: row for row in rows}
