"""Results in an object store. A scan writes into a scratch folder, and each finished case is copied from it.

The last object of a case is the list of its files (`files.json`): with it, the case is finished. The scratch
folder then keeps only what a scan needs to skip the case. After a crash, a case that was not finished
continues from the scratch folder of the same machine, or starts again on another one.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lobule.errors import NotReadable, ResultsError
from lobule.files import is_url, results_error, write_bytes
from lobule.fingerprints import cache_folder
from lobule.object_folder import REQUESTS_AT_ONCE, ObjectFolder, read_existing
from lobule.results.case_files import FILES, CaseFiles, FileEntry, local_case_files
from lobule.results.folder import PATIENTS, PLAN, RESULT, SCAN, CaseFolder
from lobule.results.locks import lock_folder
from lobule.results.runs import RECORD, RUNS
from lobule.results.store_lock import StoreLock
from lobule.results.work import WORK

CASES = "cases"
SUMMARY = "results.csv"
VERSION = ".version-in-store"
"""File of a case folder with the version of its list of files in the store; only finished cases have it."""
FEATURE_MANIFEST = "features.json"
REMAINING = (PLAN, RESULT, FILES, VERSION)
"""What remains in the scratch folder of a case that is finished in the store."""

log = logging.getLogger("lobule.results")


def _no_further_files(folder: CaseFolder) -> Sequence[Path]:
    return ()


@dataclass(eq=False)
class ResultsStore:
    """The results below a URL, and their scratch folder on this machine."""

    objects: ObjectFolder
    root: Path
    """The scratch folder that corresponds to the URL."""
    subfolder: str = ""
    """The results folder below it: "scan" for features, otherwise the folder itself."""
    lock: StoreLock | None = None
    further_files: Callable[[CaseFolder], Sequence[Path]] = _no_further_files
    """Returns the files of a case that are outside of its folder, such as features."""
    omitted: tuple[str, ...] = ()
    """Subfolders of a case that are not copied into the store."""
    _stored: set[str] = field(default_factory=set)
    """Folder names of the cases that have objects in the store."""
    _settings: bytes | None = None
    """The settings that were last copied into the store."""

    @property
    def address(self) -> StoreAddress:
        """What a worker on another machine needs to open the same store."""
        return StoreAddress(self.objects.url, self.subfolder, self.further_files, self.omitted)

    @property
    def results(self) -> Path:
        """The results folder on this machine."""
        return self.root / self.subfolder if self.subfolder else self.root

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    # -- from the store -----------------------------------------------------------------------------------

    def pull(self) -> None:
        """Bring the settings and the records of finished cases to this machine.

        Raises:
            NotReadable: The store cannot be read.
            DamagedResults: An object does not have the bytes that were written.
        """
        listing = self.objects.objects()
        cases = self._key(self.results / CASES) + "/"
        names = {key[len(cases) :].partition("/")[0] for key in listing if key.startswith(cases)}
        self._stored = names
        if self._key(self.results / SCAN) not in listing:
            self._delete_scratch(self.root)  # The scratch folder is from results that were deleted since.
        self.pull_settings()
        for key in listing:
            if self.subfolder and key.endswith(FEATURE_MANIFEST):
                self._pull_file(self.root / key)
        local = {path.name for path in (self.results / CASES).glob("*") if path.is_dir()}
        versions = {
            name: entry.version if (entry := listing.get(f"{cases}{name}/{FILES}")) else None
            for name in names | local
        }
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(self._reconcile, versions, versions.values()))

    def pull_settings(self) -> None:
        """Bring the files that all cases share to this machine."""
        for name in (SCAN, PATIENTS, WORK):
            self._pull_file(self.results / name)

    def _pull_file(self, path: Path) -> None:
        stored = self.objects.read(self._key(path))
        if stored is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, stored[0])

    def refresh(self, folder: CaseFolder) -> None:
        """Bring the record of one case to this machine, if the case is finished in the store."""
        name = folder.path.name
        version = self.objects.version(self._key(folder.path / FILES))
        if version is not None or self.objects.objects(self._key(folder.path)):
            self._stored.add(name)
        self._reconcile(name, version)

    def _reconcile(self, name: str, version: str | None) -> None:
        """Let the scratch folder of a case agree with the store, where its list of files has a version."""
        folder = self.results / CASES / name
        marker = folder / VERSION
        local_version = marker.read_text() if marker.exists() else None
        if version is None:
            if local_version is not None:  # The case was deleted from the store.
                self._delete_scratch(folder)
            return
        if version == local_version and (folder / RESULT).exists():
            return
        key = self._key(folder / FILES)
        data, version = self.objects.read(key) or (b"", version)
        stored = CaseFiles.from_bytes(data, self.objects.url_of(key))
        contents = {}
        for path in (folder / PLAN, folder / RESULT):
            if (entry := stored.files.get(self._key(path))) is not None:
                key = self._key(path)
                contents[path] = entry.check(read_existing(self.objects, key), self.objects.url_of(key))
        self._delete_scratch(folder)
        try:
            folder.mkdir(parents=True)
            for path, content in {**contents, folder / FILES: data}.items():
                path.write_bytes(content)
            marker.write_text(version)
        except OSError as error:
            raise results_error(error, folder) from error

    def _delete_scratch(self, folder: Path) -> None:
        try:
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            if folder != self.root and folder.is_dir():
                folder.rmdir()
        except OSError as error:
            raise results_error(error, folder) from error

    # -- to the store -------------------------------------------------------------------------------------

    def publish(self, folder: CaseFolder, status: str) -> None:
        """Copy a finished case into the store, unless it is there already.

        Raises:
            ResultsError: The store refuses or fails, or another scan has taken over the URL.
        """
        if self.lock is not None:
            self.lock.check()
        try:
            self._publish(folder, status)
        except NotReadable as error:
            raise ResultsError(error.problem, subject=error.subject, remedy=error.remedy) from error

    def _publish(self, folder: CaseFolder, status: str) -> None:
        self.publish_settings()
        is_stored = (folder.path / VERSION).exists()
        stored = local_case_files(folder.path) if is_stored else None
        if status == "skipped" and stored is not None:
            self._publish_correction(folder, stored)
            return
        paths = list(self._files_of(folder))
        files = CaseFiles({self._key(path): FileEntry.of(path) for path in paths})
        (folder.path / VERSION).unlink(missing_ok=True)
        record, result = folder.path / FILES, folder.path / RESULT
        outdated: set[str] = set()
        if folder.path.name in self._stored:
            self.objects.delete([self._key(record)])  # A half-replaced case must not count as finished.
            outdated = set(self.objects.objects(self._key(folder.path))) - set(files.files)
        self._stored.add(folder.path.name)
        self.objects.write_all((self._key(path), path) for path in paths if path != result)
        self.objects.write(self._key(result), result)
        self.objects.delete(outdated)
        self._finish(folder, files)
        self._remove_published(folder, paths)

    def _publish_correction(self, folder: CaseFolder, stored: CaseFiles) -> None:
        """Write the result of a finished case again if its patient was corrected."""
        path = folder.path / RESULT
        entry = FileEntry.of(path)
        if stored.files.get(self._key(path)) != entry:
            self.objects.write(self._key(path), path)
            self._finish(folder, CaseFiles({**stored.files, self._key(path): entry}))

    def _finish(self, folder: CaseFolder, files: CaseFiles) -> None:
        """Write the list of files, which marks the case as finished."""
        data = files.to_bytes()
        version = self.objects.write(self._key(folder.path / FILES), data)
        write_bytes(folder.path / FILES, data)
        write_bytes(folder.path / VERSION, version.encode())

    def _files_of(self, folder: CaseFolder) -> Iterator[Path]:
        for path in sorted(folder.path.rglob("*")):
            names = path.relative_to(folder.path).parts
            is_hidden = any(name.startswith(".") for name in names)
            if path.is_file() and not is_hidden and names[0] not in self.omitted and names != (FILES,):
                yield path
        yield from self.further_files(folder)

    def _remove_published(self, folder: CaseFolder, paths: Iterable[Path]) -> None:
        """Delete what is in the store now and is not needed to skip the case."""
        try:
            for path in paths:
                if path.name not in REMAINING or path.parent != folder.path:
                    path.unlink(missing_ok=True)
            for path in folder.path.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
        except OSError as error:
            raise results_error(error, folder.path) from error

    def publish_file(self, path: Path) -> None:
        """Copy a file that all cases share into the store, if it exists here."""
        if path.is_file():
            self.objects.write(self._key(path), path)

    def publish_missing(self, path: Path) -> None:
        """Copy a file into the store if it exists here and not there."""
        if path.is_file() and self.objects.version(self._key(path)) is None:
            self.objects.write(self._key(path), path)

    def publish_run(self, name: str) -> None:
        """Copy the record of a run. An error is logged and does not stop the scan."""
        try:
            self.publish_file(self.results / RUNS / name / RECORD)
        except ResultsError as error:
            log.warning("The record of this run cannot be stored: %s", error)

    def publish_settings(self) -> None:
        """Copy `scan.json` into the store if it has changed: a scan may record halved batches in it."""
        path = self.results / SCAN
        settings = path.read_bytes() if path.is_file() else None
        if settings != self._settings:
            self.publish_file(path)
            self._settings = settings

    def publish_summary(self) -> None:
        self.publish_file(self.results / RECORD)
        self.publish_file(self.results / SUMMARY)

    def _is_of_features(self, key: str) -> bool:
        return key.endswith((FEATURE_MANIFEST, ".h5", ".safetensors"))

    def clear(self) -> None:
        """Delete an earlier scan from the store, the lists of files first."""
        cases, runs = (self._key(self.results / name) + "/" for name in (CASES, RUNS))
        files = {self._key(self.results / name) for name in (SCAN, PATIENTS, WORK, SUMMARY, RECORD)}
        keys = [
            key
            for key in self.objects.objects()
            if key.startswith((cases, runs)) or key in files or (self.subfolder and self._is_of_features(key))
        ]
        lists = [key for key in keys if key.endswith(f"/{FILES}")]
        self.objects.delete(lists)
        self.objects.delete(set(keys) - set(lists))


@dataclass(frozen=True)
class StoreAddress:
    """A store as it is sent to workers. Each machine has its own scratch folder."""

    url: str
    subfolder: str = ""
    further_files: Callable[[CaseFolder], Sequence[Path]] = _no_further_files
    omitted: tuple[str, ...] = ()

    def open(self) -> ResultsStore:
        """Open the store without its lock, which the driver has."""
        objects = ObjectFolder(self.url)
        root = scratch_of(objects.url)
        (root / self.subfolder).mkdir(parents=True, exist_ok=True)
        return ResultsStore(objects, root, self.subfolder, None, self.further_files, self.omitted)


def scratch_of(url: str) -> Path:
    """Return the scratch folder of a URL, in the cache of the user (`LOBULE_CACHE`)."""
    name = hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32]
    return cache_folder() / "results" / name / "folder"


@contextmanager
def results_at(
    out: str | Path,
    subfolder: str = "",
    fresh: bool = False,
    *,
    further_files: Callable[[CaseFolder], Sequence[Path]] = _no_further_files,
    omitted: tuple[str, ...] = (),
) -> Iterator[tuple[Path, ResultsStore | None]]:
    """Yield the folder on this machine that a scan writes to, and its store if `out` is a URL.

    Args:
        out: A local folder, or the URL of a folder in an object store.
        subfolder: The results folder below it.
        fresh: Delete an earlier scan from the store first.
        further_files: Returns the files of a case that are outside of its folder.
        omitted: Subfolders of a case that are not copied into the store.

    Raises:
        UsageError: The URL cannot be written to.
        ResultsError: Another process writes below the URL.
    """
    if not is_url(out):
        yield Path(out), None
        return
    objects = ObjectFolder(str(out))
    objects.require_writable()
    root = scratch_of(objects.url)
    with _lock_scratch(root.parent, objects.url), StoreLock(objects) as lock:
        store = ResultsStore(objects, root, subfolder, lock, further_files, omitted)
        if fresh:
            store.clear()
        store.pull()
        yield store.root, store


@contextmanager
def _lock_scratch(home: Path, url: str) -> Iterator[None]:
    """Lock the scratch folder against another process of this machine."""
    lock = lock_folder(home)
    try:
        lock.__enter__()
    except ResultsError as error:
        raise ResultsError(error.problem, subject=url, remedy=error.remedy) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)
