"""Write the cases of a results folder in another format, one after the other; an export can be resumed.

The files of a case are written into a hidden folder, flushed and renamed, and then recorded. A later call
skips cases whose files are complete and whose results have not changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from lobule import __version__
from lobule.cohort import Cohort
from lobule.errors import LobuleError, ResultsError, UsageError
from lobule.exports.case import ExportCase, unreadable
from lobule.exports.export import CaseRecord, Export, StoreReport, find_export
from lobule.exports.options import ExportOptions
from lobule.files import (
    case_folder_name,
    flush_all,
    make_folder,
    read_json,
    results_error,
    write_json,
)
from lobule.results import open_results
from lobule.results.case_map import CaseMap, map_here
from lobule.results.locks import lock_folder
from lobule.results.result import COMPLETE, PARTIAL, RESEARCH_USE
from lobule.reviews import FOLDER as REVIEWS
from lobule.server.library import Entry, Library, Source

log = logging.getLogger("lobule")

HIDDEN = ".lobule-export"
"""Folder with the records of exported cases, and with files that are being written."""
RECORD_FORMAT = 1
NOT_EXPORTED = {
    "unscored": "Nothing in this case could be scored, so it is not exported.",
    "failed": "The scan of this case failed.",
    "unfinished": "The scan of this case is not finished. Run `lobule scan` again, then `lobule export`.",
    "not started": "This case was not scanned. Run `lobule scan` again, then `lobule export`.",
    "damaged": "The result of this case is damaged. Scan it again.",
}


@dataclass(frozen=True)
class ExportReport:
    """The outcome of an export."""

    path: Path
    format: str
    records: tuple[CaseRecord, ...]
    skipped: int = 0
    """Cases that an earlier call exported and that have not changed."""
    files: tuple[str, ...] = ()
    """Files about all cases."""
    notes: tuple[str, ...] = field(default=())
    store: StoreReport | None = None
    """What was stored on a DICOMweb server."""

    @property
    def exported(self) -> tuple[CaseRecord, ...]:
        return tuple(record for record in self.records if record.exported)

    @property
    def failed(self) -> int:
        """Cases with a result that could not be exported, and files that could not be stored."""
        failed = sum(1 for record in self.records if record.error is not None)
        return failed + (len(self.store.failed) if self.store else 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "lobule": __version__,
            "research_use": RESEARCH_USE,
            "exported": len(self.exported),
            "failed": self.failed,
            "cases": [record.to_dict() for record in self.records],
            "files": list(self.files),
            **({"store": self.store.to_dict()} if self.store else {}),
        }


def export_results(
    results: str | Path,
    to: str | Export,
    out: str | Path,
    *,
    cases: Sequence[str] = (),
    cohort: Cohort | None = None,
    slides: str | Path | None = None,
    options: ExportOptions | None = None,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda case: None,
    map_cases: CaseMap = map_here,
) -> ExportReport:
    """Export a results folder.

    Args:
        results: The results folder, whose scan may still be running.
        to: A name of `EXPORTS`, or the format itself.
        out: Folder for the files.
        cases: Names of the cases to export; by default all.
        cohort: Rows of the cases: patients, sites, labels and paths.
        slides: Folder that is searched for images that have moved.
        options: Options of the format.
        fresh: Write all cases again.
        progress: Called with the name of each case that is done.
        map_cases: Runs the cases, for example on several machines.

    Returns:
        A report that lists the files, and what is missing, for each case.

    Raises:
        ConfigError: The format does not exist or does not support an option.
        MissingExtra: The format needs an extra that is not installed.
        UsageError: A case is not in the results.
        ResultsError: The folder cannot be written, or contains a file that this export did not write.
    """
    options = options or ExportOptions()
    export = find_export(to) if isinstance(to, str) else to
    export.check(options)
    opened = open_results(results)
    export_case = _CaseExport(to, options, opened.path, cohort, slides, Path(out), fresh)
    names = chosen_names(export_case.entries, cases)
    folder = make_folder(out)
    if folder.resolve() == opened.path.resolve():
        raise UsageError("this is the results folder itself", subject=out, remedy="Use another --out folder")
    with lock_folder(folder):
        outcomes = map_cases(export_case, names, done=progress, if_lost=_record_of_lost_case)
        records, skipped = [record for record, _ in outcomes], sum(is_skipped for _, is_skipped in outcomes)
        files = export_case.run.finish(records)
        report = ExportReport(folder, export.name, tuple(records), skipped, tuple(files))
        write_json(folder / f"{export.name}.export.json", report.to_dict())
    return report


def chosen_names(entries: Mapping[str, Entry], cases: Sequence[str]) -> list[str]:
    """Return these names of cases, or all. Raises `UsageError` for a name without a case."""
    for name in cases:
        if name not in entries:
            from difflib import get_close_matches

            near = get_close_matches(name, entries, 1)
            raise UsageError(
                f"the results have no case '{name}'",
                remedy=f"Did you mean '{near[0]}'?" if near else "`lobule info RESULTS` lists the cases",
            )
    return list(dict.fromkeys(cases)) if cases else list(entries)


@dataclass(frozen=True)
class _CaseExport:
    """Exports one case by its name. Each process opens the results itself, so they are not pickled."""

    to: str | Export
    options: ExportOptions
    results: Path
    cohort: Cohort | None
    slides: str | Path | None
    folder: Path
    fresh: bool

    def __reduce__(self) -> tuple[Any, ...]:
        return _CaseExport, tuple(getattr(self, item.name) for item in fields(self))

    @cached_property
    def run(self) -> _Run:
        export = find_export(self.to) if isinstance(self.to, str) else self.to
        source = Source(self.results.name, open_results(self.results))
        library = Library([source], self.cohort, None if self.slides is None else Path(self.slides))
        return _Run(export, self.options, library, self.results, self.folder, self.fresh)

    @cached_property
    def entries(self) -> dict[str, Entry]:
        return {entry.name: entry for entry in self.run.library.entries()}

    def __call__(self, name: str) -> tuple[CaseRecord, bool]:
        """Export a case. Return its record, and whether an earlier call had exported it."""
        skipped = self.run.skipped
        record = self.run.record_of(self.entries[name])
        return record, self.run.skipped > skipped


def _record_of_lost_case(name: str, losses: int) -> tuple[CaseRecord, bool]:
    problem = f"The process that exported the case died {losses} times. It may need more memory."
    return CaseRecord(name, "unfinished", error=problem), False


@dataclass
class _Run:
    """One call of an export, in one process."""

    export: Export
    options: ExportOptions
    library: Library
    results: Path
    folder: Path
    fresh: bool
    skipped: int = 0
    _owners: dict[str, str] = field(default_factory=dict)

    def record_of(self, entry: Entry) -> CaseRecord:
        if entry.folder is None or not entry.folder.path.is_dir():
            return _not_exported(entry.name, "not started")
        case = ExportCase(self.library, entry, self.results)
        try:
            if case.result.get("status") not in (COMPLETE, PARTIAL):
                return _unusable(case)
            if case.kind not in self.export.kinds:
                note = f"The format {self.export.name} does not represent a case of the kind {case.kind}."
                return CaseRecord(case.name, case.status, case.result["scores"], notes=(note,))
            return self._exported(case)
        except UsageError:
            raise  # The request is wrong for every case.
        except ResultsError as error:
            subject = Path(error.subject or ".").absolute()
            if not subject.is_relative_to(self.results.absolute()):
                raise  # The folder of the export cannot be written.
            return CaseRecord(case.name, "damaged", error=unreadable(error))
        except LobuleError as error:
            return CaseRecord(case.name, case.status, case.result["scores"], error=unreadable(error))
        except Exception as error:  # A mistake in a format must not lose the other cases.
            log.debug("case %s cannot be exported", case.name, exc_info=True)
            message = f"Unexpected {type(error).__name__}: {error}. This is a bug in Lobule."
            return CaseRecord(case.name, case.status, error=message)

    # -- one case -----------------------------------------------------------------------------------------

    def _exported(self, case: ExportCase) -> CaseRecord:
        path = self.folder / HIDDEN / self.export.name / f"{case.file_name}.json"
        identity = self._identity(case)
        stored = None if self.fresh else _stored(path, identity)
        if stored is not None and _complete(stored, self.folder):
            self.skipped += 1
            return stored
        before = _recorded_files(path)
        staging = self.folder / HIDDEN / "writing" / case.file_name
        shutil.rmtree(staging, ignore_errors=True)
        try:
            make_folder(staging)
            output = self.export.write(case, staging, self.options)
            flush_all(staging)
            self._refuse_foreign(staging, before)
            _announce(path, before, staging)
            files = dict(self._moved(staging))
            for name in before - files.keys():
                _remove(self.folder / name)
        except OSError as error:
            raise results_error(error, self.folder) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        notes = (*case.notes(), *output.notes)
        record = CaseRecord(
            case.name, case.status, case.result["scores"], True, files, notes, None, output.summary
        )
        write_json(path, {"format": RECORD_FORMAT, "identity": identity, **record.to_dict()})
        return record

    def _identity(self, case: ExportCase) -> str:
        """Hash everything that determines the files of a case; maps and tables by sizes and times."""
        reviews = self.results / REVIEWS / case_folder_name(case.name)
        options, row = self.options.to_dict(), repr(case.entry.row)
        state: list[list[Any]] = [
            [__version__, self.export.name, self.export.variant, options, case.patient, row]
        ]
        state += [[name, vars(frame)] for name, frame in case.frames.items()]
        for root in (case.folder.path, reviews):
            for item in sorted(root.rglob("*")):
                if item.is_file() and item.name != "run.json":
                    status = item.stat()
                    state.append([item.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
        return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()

    def _refuse_foreign(self, staging: Path, before: set[str]) -> None:
        for item in staging_items(staging):
            name = item.relative_to(staging).as_posix()
            target = self.folder / name
            if os.path.lexists(target) and name not in before:
                raise ResultsError(
                    "a file with this name exists, and this export did not write it",
                    subject=target,
                    remedy="Remove it, or use another --out folder",
                )

    def _moved(self, staging: Path) -> Iterator[tuple[str, int]]:
        """Rename the files of a case into the folder of the export and yield their names and sizes."""
        for item in list(staging_items(staging)):
            name = item.relative_to(staging).as_posix()
            target = self.folder / name
            make_folder(target.parent)
            if target.is_dir():
                _remove(target)
            item.replace(target)
            yield name, size_of(target)

    # -- all cases ----------------------------------------------------------------------------------------

    def finish(self, records: Sequence[CaseRecord]) -> list[str]:
        """Write the files about all cases."""
        with suppress(OSError):
            shutil.rmtree(self.folder / HIDDEN / "writing")
        if self.export.finish is None:
            return []
        staging = self.folder / HIDDEN / "finishing"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            make_folder(staging)
            self.export.finish(records, staging, self.options)
            flush_all(staging)
            path = self.folder / HIDDEN / self.export.name / ".finish.json"
            before = _recorded_files(path)
            self._refuse_foreign(staging, before)
            _announce(path, before, staging)
            files = dict(self._moved(staging))
            for name in before - files.keys():
                _remove(self.folder / name)
            write_json(path, {"files": files})
        except OSError as error:
            raise results_error(error, self.folder) from error
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return sorted(files)


def _announce(path: Path, before: set[str], staging: Path) -> None:
    """Record the names of files before they are renamed, so that an interrupted export can be repeated."""
    names = before | {item.relative_to(staging).as_posix() for item in staging_items(staging)}
    make_folder(path.parent)
    write_json(path, {"format": RECORD_FORMAT, "identity": None, "files": dict.fromkeys(sorted(names), 0)})


def staging_items(staging: Path) -> Iterator[Path]:
    """Yield the files below a folder. A Zarr group counts as one item."""
    for item in sorted(staging.iterdir()):
        if item.is_dir() and not item.name.endswith((".zarr", ".dicom-files")):
            yield from staging_items(item)
        else:
            yield item


def size_of(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    if path.is_dir():
        return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())
    return path.stat().st_size


def _remove(path: Path) -> None:
    if path.is_dir():
        gone = path.with_name(f".{path.name}.gone")  # An interrupted deletion leaves no partial export.
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        shutil.rmtree(gone)
    else:
        path.unlink(missing_ok=True)


def _stored(path: Path, identity: str) -> CaseRecord | None:
    """Return the record of an earlier export of the same case with the same options."""
    try:
        stored = read_json(path)
        if stored.pop("format") != RECORD_FORMAT or stored.pop("identity") != identity:
            return None
        return CaseRecord.from_dict(stored)
    except (LobuleError, KeyError, TypeError, AttributeError):
        return None


def _recorded_files(path: Path) -> set[str]:
    try:
        return set(read_json(path)["files"])
    except (LobuleError, KeyError, TypeError):
        return set()


def _complete(record: CaseRecord, folder: Path) -> bool:
    return all(
        (folder / name).exists() and size_of(folder / name) == size for name, size in record.files.items()
    )


def _unusable(case: ExportCase) -> CaseRecord:
    record = _not_exported(case.name, case.status)
    details = [str(note) for note in case.result.get("notes") or []]
    if case.result.get("error"):
        details.append(str(case.result["error"]["message"]))
    return CaseRecord(case.name, record.status, notes=(*record.notes, *details))


def _not_exported(name: str, status: str) -> CaseRecord:
    return CaseRecord(name, status, notes=(NOT_EXPORTED[status],))
