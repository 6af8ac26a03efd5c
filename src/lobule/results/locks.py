"""Locks that keep two scans or trainings from writing into the same folder."""

from __future__ import annotations

import errno
import io
import os
import platform
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path

from lobule.errors import ResultsError
from lobule.files import make_folder, results_error


@contextmanager
def lock_folder(root: str | Path, shard: tuple[int, int] | None = None, cohort: str = "") -> Iterator[None]:
    """Lock a folder against a second scan. Shards of one scan may share the folder.

    Args:
        root: The folder.
        shard: (i, n) for shard i of n.
        cohort: A hash of the cases that are divided into shards.

    Raises:
        ResultsError: Another process has locked the folder.
    """
    folder = make_folder(root)
    with ExitStack() as stack:
        stack.enter_context(_locked(folder / ".lock", shared=shard is not None))
        if shard is not None:
            division = f".lock-of{shard[1]}-{cohort[:16]}"
            stack.enter_context(_locked(folder / division, shared=True))
            _refuse_other_division(folder, division)
            stack.enter_context(_locked(folder / f".lock-{shard[0]}of{shard[1]}", shared=False))
        yield


def _refuse_other_division(folder: Path, division: str) -> None:
    """Refuse a different number of shards, or of other cases, at the same time: they have cases in common."""
    for path in sorted(folder.glob(".lock-of*")):
        if path.name != division:
            with path.open("a+") as file:
                if not _try_lock(file, shared=False):
                    raise ResultsError(
                        "a scan with a different number of shards, or of another cohort, is writing here",
                        subject=folder,
                        expected=_division_text(path.name),
                        actual=_division_text(division),
                        remedy="Use the same number of shards and the same cohort, or wait until it ends",
                    )


def _division_text(name: str) -> str:
    count, _, cohort = name.removeprefix(".lock-of").partition("-")
    return f"{count} shards of the cohort {cohort[:8]}".rstrip()


@contextmanager
def lock_settings(root: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Lock the settings for one shard at a time: the first shard writes them for all others."""
    with nullcontext() if shard is None else lock_file(root / ".lock-engine"):
        yield


WORKERS = ".lock-workers"
WORKERS_END_S = 60.0
"""Seconds within which the workers of a driver that was killed end."""


@contextmanager
def lock_worker(root: Path) -> Iterator[None]:
    """Lock a folder for a worker process of a scan, which shares it with the other workers."""
    with _locked(root / WORKERS, shared=True):
        yield


def wait_for_workers(root: Path) -> None:
    """Wait until no worker of an earlier scan writes into a folder: they may outlive their driver a little.

    Raises:
        ResultsError: A worker is still writing after a minute.
    """
    if not (root / WORKERS).exists():
        return
    with (root / WORKERS).open("a+") as file:
        deadline = time.monotonic() + WORKERS_END_S
        while not _try_lock(file, shared=False):
            if time.monotonic() > deadline:
                raise ResultsError(
                    "workers of an earlier scan are still writing here",
                    subject=root,
                    remedy="End their processes, or wait until they have ended",
                )
            time.sleep(0.2)


def has_workers(root: Path) -> bool:
    """Whether a process has locked a folder with `lock_worker`."""
    if not (root / WORKERS).exists():
        return False
    with (root / WORKERS).open("a+") as file:
        return not _try_lock(file, shared=False)


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which one process at a time has."""
    with path.open("a+") as file:
        _try_lock(file, shared=False, wait=True)
        yield


@contextmanager
def _locked(path: Path, shared: bool) -> Iterator[None]:
    try:
        file = path.open("a+")
    except OSError as error:
        raise results_error(error, path) from error
    with file:
        if not _try_lock(file, shared):
            file.seek(0)
            who = file.read().strip() or "another scan"
            raise ResultsError(
                f"{who} is writing here",
                subject=path.parent,
                remedy="Wait until it ends, or use another results folder",
            )
        _write_owner(file, "" if shared else f"process {os.getpid()} on {platform.node()}")
        yield


def _write_owner(file: io.TextIOWrapper, owner: str) -> None:
    """Write who has a lock into its file. Several processes may share a lock, which then names none."""
    with suppress(OSError):  # The text is only for messages; a full disk is reported by the first result.
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), owner.encode())


def _try_lock(file: io.TextIOWrapper, shared: bool, wait: bool = False) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows has no such locks. Single writes are still atomic.
        return True
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise ResultsError(
            f"the file system cannot lock files ({error.strerror})",
            subject=file.name,
            remedy="Mount it with locks that work between machines, or use another results folder",
        ) from error
    return True
