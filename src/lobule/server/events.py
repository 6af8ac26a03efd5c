"""Events of running scans: written chunks of maps, preliminary scores, and cases that have ended."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from lobule.results.folder import RESULT
from lobule.results.preliminary import preliminary_scores
from lobule.server.library import Entry, Library

POLL_SECONDS = 0.1
LIST_EVERY = 20
"""The list of cases is read again after this many polls."""
HEARTBEAT_SECONDS = 15.0
MOST_WAITING = 1000
"""Most events that wait for one client. A client that falls further behind has to load everything again."""

Event = dict[str, Any]


class Watcher:
    """Looks at unfinished cases while at least one client listens."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._queues: set[asyncio.Queue[Event]] = set()
        self._task: asyncio.Task[None] | None = None
        self._chunks: dict[str, set[str]] = {}
        """Chunks of each unfinished case as `map/row/column`."""
        self._with_preliminary_scores: set[str] = set()
        """Unfinished cases whose preliminary scores were announced."""
        self._finished: dict[str, int] = {}
        """Time of the result of each finished case."""
        self._entries: list[Entry] = []

    async def listen(self) -> AsyncIterator[str]:
        """Yield the events as text for server-sent events."""
        queue: asyncio.Queue[Event] = asyncio.Queue(MOST_WAITING)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._poll())
        self._queues.add(queue)
        try:
            yield "retry: 1000\n\n"
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), HEARTBEAT_SECONDS)
                    yield f"data: {json.dumps(event)}\n\n"
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self._queues.discard(queue)

    async def _poll(self) -> None:
        await asyncio.to_thread(self.changes, True)
        polls = 0
        while self._queues:
            await asyncio.sleep(POLL_SECONDS)
            polls += 1
            for event in await asyncio.to_thread(self.changes, polls % LIST_EVERY == 0):
                for queue in self._queues:
                    if queue.full():
                        while not queue.empty():
                            queue.get_nowait()
                        event = {"kind": "reload"}
                    queue.put_nowait(event)

    def changes(self, list_cases: bool) -> list[Event]:
        """Return what has changed since the last call."""
        events: list[Event] = []
        if list_cases:
            before = {entry.id for entry in self._entries}
            self._entries = [entry for entry in self.library.entries() if entry.folder is not None]
            if before and {entry.id for entry in self._entries} != before:
                events.append({"kind": "cases"})
        for entry in self._entries:
            try:
                events += self._changes_of(entry)
            except OSError:  # The folder was moved or deleted.
                continue
        return events

    def _changes_of(self, entry: Entry) -> list[Event]:
        assert entry.folder is not None
        result = entry.folder.path / RESULT
        try:
            written = result.stat().st_mtime_ns
        except FileNotFoundError:
            written = 0
        events: list[Event] = []
        before = self._finished.get(entry.id)
        if written:
            self._finished[entry.id] = written
            self._chunks.pop(entry.id, None)
            self._with_preliminary_scores.discard(entry.id)
            return [{"kind": "finished", "case": entry.id}] if before not in (None, written) else []
        self._finished[entry.id] = 0
        if not entry.folder.path.is_dir():
            return []
        chunks = {
            f"{path.parts[-5]}/{path.parts[-2]}/{path.parts[-1]}"
            for path in (entry.folder.path / "maps").glob("*/state/c/*/*")
            if path.name.isdigit()
        }
        if entry.id in self._chunks and chunks != self._chunks[entry.id]:
            new = sorted(chunks - self._chunks[entry.id])
            events.append({"kind": "chunks", "case": entry.id, "chunks": new})
        elif entry.id not in self._chunks and chunks:
            events.append({"kind": "chunks", "case": entry.id, "chunks": sorted(chunks)})
        self._chunks[entry.id] = chunks
        if entry.id not in self._with_preliminary_scores and (scores := preliminary_scores(entry.folder)):
            self._with_preliminary_scores.add(entry.id)
            events.append({"kind": "preliminary", "case": entry.id, "scores": scores})
        return events
