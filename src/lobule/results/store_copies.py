"""Copies of results that are in an object store, for commands that read results.

A copy is in the cache of the user (`LOBULE_CACHE`). It has the finished cases only, and each file is checked
against the hash that the scan wrote. A later command copies only cases that have changed. All copies
together are at most 20 GiB: those that were not used for the longest time are deleted first.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lobule.errors import DamagedResults, ResultsError, TooLarge
from lobule.files import case_folder_name, is_url, results_error, write_bytes
from lobule.fingerprints import cache_folder, cache_limit
from lobule.object_folder import REQUESTS_AT_ONCE, ObjectFolder, read_existing
from lobule.results.case_files import FILES, CaseFiles, local_case_files
from lobule.results.folder import COPY_OF, PATIENTS, RESULT, SCAN, Results
from lobule.results.locks import has_workers, lock_file, lock_worker
from lobule.results.map_check import FILE as MAP_CHECK
from lobule.results.store import CASES, SUMMARY
from lobule.results.store_lock import LOCK
from lobule.results.work import WORK

LIMIT_VARIABLE = "LOBULE_RESULTS_CACHE_BYTES"
COPIED = ".copied"
"""File of a case folder with the version of its list of files, and whether only its record is copied."""
ALL, RECORD = "all", "record"
_in_use: dict[Path, ExitStack] = {}
"""Locks of the copies that this process uses, so that no other process deletes them."""


def local_results(
    path: str | Path, *, subfolder: str = "", cases: Collection[str] = (), only_records: bool = False
) -> Path:
    """Return a results folder on this machine: the path itself, or a copy of the results below a URL.

    Args:
        path: A results folder, or its URL.
        subfolder: The results folder below the URL: "scan" for features.
        cases: Names of the cases to copy; by default all.
        only_records: Copy only `result.json` of each case, without maps, tables and findings.

    Raises:
        ResultsError: There are no results below the URL, or they cannot be copied.
        NotReadable: The store refuses or fails.
        DamagedResults: A file does not have the bytes that the scan wrote.
        TooLarge: The results are larger than the limit of all copies.
    """
    if not is_url(path):
        return Path(path)
    objects = ObjectFolder(str(path))
    home = cache_folder() / "copies" / hashlib.sha256(objects.url.encode()).hexdigest()[:32]
    try:
        home.mkdir(parents=True, exist_ok=True)
        with lock_file(home / ".lock"):
            _use_until_exit(home)
            copy = _Copy(objects, home / objects.name, subfolder)
            copy.update(frozenset(map(case_folder_name, cases)), only_records)
    except OSError as error:
        raise results_error(error, home) from error
    return copy.root


@dataclass(frozen=True)
class _Copy:
    objects: ObjectFolder
    root: Path
    subfolder: str

    @property
    def _start(self) -> str:
        return f"{self.subfolder}/" if self.subfolder else ""

    def update(self, chosen: Collection[str], only_records: bool) -> None:
        """Let the copy agree with the store."""
        results = self.root / self.subfolder
        if self.objects.is_read_only:
            self._copy_shared([self._start + name for name in (SCAN, PATIENTS, WORK, SUMMARY, MAP_CHECK)])
            versions: dict[str, str | None] = dict.fromkeys(map(case_folder_name, self._planned()))
        else:
            keys = self.objects.objects()
            cases = f"{self._start}{CASES}/"
            self._copy_shared([key for key in keys if self._is_shared(key, cases)])
            self._planned()
            lists = [key for key in keys if key.startswith(cases) and key.endswith(f"/{FILES}")]
            versions = {key[len(cases) :].partition("/")[0]: keys[key].version for key in lists}
        versions = {name: version for name, version in versions.items() if not chosen or name in chosen}
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            answers = zip(versions, pool.map(self._list_of, versions, versions.values()), strict=True)
            finished = {name: stored for name, stored in answers if stored is not None}
        for folder in (results / CASES).glob("*"):
            if (
                folder.name not in finished
            ):  # It was deleted from the store, or is not among the chosen cases.
                shutil.rmtree(folder)
        write_bytes(self.root / COPY_OF, self.objects.url.encode())
        if not only_records:
            self._make_room(
                sum(entry.size for stored, _ in finished.values() for entry in stored.files.values())
            )
        for name, (stored, version) in sorted(finished.items()):
            self._copy_case(results / CASES / name, stored, version, only_records)

    def _is_shared(self, key: str, cases: str) -> bool:
        """Whether an object belongs to all cases. Feature files belong to a case each."""
        return key != LOCK and not key.startswith(cases) and not key.endswith(".h5")

    def _copy_shared(self, keys: list[str]) -> None:
        def copy(key: str) -> None:
            stored = self.objects.read(key)
            path = self.root / key
            if stored is None:
                path.unlink(missing_ok=True)
            elif not path.exists() or path.read_bytes() != stored[0]:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_bytes(path, stored[0])

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(copy, keys))

    def _planned(self) -> list[str]:
        if not (self.root / self._start / SCAN).is_file():
            raise ResultsError(
                "not a results folder",
                subject=self.objects.url,
                expected=f"a folder with {self._start}{SCAN}",
                remedy="Create one with `lobule scan`",
            )
        try:
            return Results(self.root / self.subfolder).planned()
        except DamagedResults:
            return []

    def _list_of(self, name: str, version: str | None) -> tuple[CaseFiles, str] | None:
        """Return the list of files of a case and its version, or None if the case is not finished.

        If the copy has the list in the version of the store, it is not read again.
        """
        folder = self.root / self.subfolder / CASES / name
        if version is not None and _copied_version(folder)[0] == version:
            stored = local_case_files(folder)
            if stored is not None:
                return stored, version
        key = f"{self._start}{CASES}/{name}/{FILES}"
        answer = self.objects.read(key)
        return answer and (CaseFiles.from_bytes(answer[0], self.objects.url_of(key)), answer[1])

    def _copy_case(self, folder: Path, stored: CaseFiles, version: str, only_records: bool) -> None:
        """Copy the files of a case, the list last. Files that are the same already are not copied again."""
        copied, extent = _copied_version(folder)
        if copied == version and (only_records or extent == ALL):
            return
        result_key = f"{self._start}{CASES}/{folder.name}/{RESULT}"
        before = local_case_files(folder)
        existing = {} if before is None else before.files
        if any(stored.files.get(key) != entry for key, entry in existing.items()):
            shutil.rmtree(folder, ignore_errors=True)  # The case was scanned again.
            existing = {}
        keys = [key for key in stored.files if not only_records or key == result_key]
        missing = [key for key in keys if key not in existing or not (self.root / key).is_file()]
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda key: self._copy_file(key, stored), missing))
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / FILES, stored.to_bytes())
        (folder / COPIED).write_text(f"{version}\n{RECORD if only_records else ALL}")

    def _copy_file(self, key: str, stored: CaseFiles) -> None:
        data = stored.files[key].check(read_existing(self.objects, key), self.objects.url_of(key))
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def _make_room(self, size: int) -> None:
        """Delete other copies, so that all copies together stay below the limit."""
        home, limit = self.root.parent, cache_limit(LIMIT_VARIABLE)
        if size > limit:
            raise TooLarge(
                "the results are too large for a copy on this machine",
                subject=self.objects.url,
                expected=f"at most {limit:,} bytes",
                actual=f"{size:,} bytes",
                remedy=f"Set {LIMIT_VARIABLE} to more bytes, or choose single cases with --case",
            )
        other_copies = [path for path in home.parent.iterdir() if path.is_dir() and path != home]
        other_copies.sort(key=lambda path: path.stat().st_mtime)
        total = sum(map(_bytes_of, other_copies))
        for path in other_copies:
            if total + size <= limit:
                break
            if not has_workers(path):
                total -= _bytes_of(path)
                shutil.rmtree(path, ignore_errors=True)


def _use_until_exit(home: Path) -> None:
    """Keep other processes from deleting a copy until this one ends."""
    os.utime(home)
    if home not in _in_use:
        _in_use[home] = ExitStack()
        _in_use[home].enter_context(lock_worker(home))
        atexit.register(_in_use[home].close)


def _copied_version(folder: Path) -> tuple[str, str]:
    """Return the version of a copied case, and whether all of it or only its record is copied."""
    path = folder / COPIED
    version, _, extent = path.read_text().partition("\n") if path.exists() else ("", "", "")
    return version, extent


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def store_back(url: str | Path, copy: Path, names: Iterable[str]) -> None:
    """Copy files that a command has written into a copy back into the store, unless it is read-only."""
    objects = ObjectFolder(str(url))
    if objects.is_read_only:
        return
    for name in names:
        if (copy / name).is_file():
            objects.write(name, copy / name)
