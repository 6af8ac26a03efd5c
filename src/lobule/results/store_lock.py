"""A lock in an object store, which keeps two scans from writing below the same URL.

The lock is an object that is created only if it does not exist, and written again every few seconds. A lock
that is no longer written belongs to a process that was killed, and is taken over. Only changes of the lock
count, so the clocks of the machines may differ.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from lobule.errors import LobuleError, ResultsError
from lobule.object_folder import ObjectFolder
from lobule.results.runs import BEAT_S, SILENT_S

LOCK = "scan.lock.json"
LOOK_S = 1.0

log = logging.getLogger("lobule.results")


class StoreLock:
    """A context in which this process has the lock of a folder in an object store.

    Args:
        folder: The folder.
        beat_s: Seconds after which the lock is written again.
        silent_s: A lock that has not changed for so many seconds is taken over.

    Raises:
        ResultsError: Another process has the lock.
    """

    def __init__(self, folder: ObjectFolder, beat_s: float = BEAT_S, silent_s: float = SILENT_S) -> None:
        self.folder, self.beat_s, self.silent_s = folder, beat_s, silent_s
        self._identity = {"id": uuid4().hex, "host": _machine(), "process": os.getpid()}
        self._beat = 0
        self._problem: LobuleError | None = None
        self._ended = threading.Event()

    def __enter__(self) -> StoreLock:
        self._version = self._acquire()
        self._thread = threading.Thread(target=self._beat_until_end, name="store-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._problem is None:
            with suppress(LobuleError):  # A lock that remains is taken over later.
                self.folder.delete([LOCK])

    def check(self) -> None:
        """Raise the error of the lock: it was lost, or the store no longer answers."""
        if self._problem is not None:
            raise self._problem

    def _content(self) -> bytes:
        self._beat += 1
        return (json.dumps({**self._identity, "beat": self._beat}) + "\n").encode()

    def _acquire(self) -> str:
        try:
            while True:
                version = self.folder.create(LOCK, self._content())
                if version is not None:
                    return version
                stored = self.folder.read(LOCK)
                if stored is None:  # The other process has just ended.
                    continue
                owner = _owner(stored[0])
                # A repeated request may meet the lock that its first attempt has created.
                if owner.get("id") == self._identity["id"]:
                    return stored[1]
                self._require_silence(owner, stored[1])
                version = self.folder.replace(LOCK, self._content(), stored[1])
                if version is not None:
                    return version
        except LobuleError:
            raise
        except Exception as error:
            raise ResultsError(
                "the store cannot lock the results", subject=self.folder.url, actual=str(error)[:300]
            ) from error

    def _require_silence(self, owner: dict[str, object], version: str) -> None:
        """Return if the process that has the lock is dead. Raise `ResultsError` if it is alive."""
        if owner.get("host") == _machine() and not _is_running(owner.get("process")):
            return
        log.info("Another scan has locked %s; waiting whether it is still running", self.folder.url)
        deadline = time.monotonic() + self.silent_s
        while time.monotonic() < deadline:
            time.sleep(min(LOOK_S, self.silent_s / 5))
            if self.folder.version(LOCK) != version:
                machine = str(owner.get("host")).partition(" ")[0]
                raise ResultsError(
                    f"process {owner.get('process')} on {machine} is writing here",
                    subject=self.folder.url,
                    remedy="Wait until it ends, or use another URL",
                )

    def _beat_until_end(self) -> None:
        while not self._ended.wait(self.beat_s):
            try:
                version = self.folder.replace(LOCK, self._content(), self._version)
                if version is None:
                    stored = self.folder.read(LOCK)
                    if stored is None or _owner(stored[0]).get("id") != self._identity["id"]:
                        raise self._taken_over()
                    version = stored[1]
                self._version = version
            except LobuleError as error:
                self._problem = error
                return

    def _taken_over(self) -> ResultsError:
        return ResultsError(
            "another scan has taken over this folder, because this one did not answer for a while",
            subject=self.folder.url,
            remedy="Wait until the other scan ends",
        )


def _owner(data: bytes) -> dict[str, object]:
    try:
        content = json.loads(data)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _machine() -> str:
    """Return the name of this machine. Containers with the same name differ in their process numbers."""
    try:
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()


def _is_running(process: object) -> bool:
    """Whether a process of this machine is running. A process of another user counts as running."""
    if not isinstance(process, int) or process <= 0:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
