"""Open and read files in a child process that must survive them, measuring time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lobule.errors import CaseError, DamagedTile, LobuleError
from lobule.geometry import Box
from lobule.slides import Slide, open_slide
from lobule.slides.tiff import TiffBackend

SECONDS = 10.0
"""Processor time that one file may take."""
PATIENCE = 60.0
"""Elapsed time after which a file counts as hanging."""
BYTES = 2 << 30
MAX_BOXES = 40
MAX_THUMBNAIL_PIXELS = 50_000_000


def exercise(path: Path, backend: str | None = None) -> str:
    """Open a file and read all of it. Returns the outcome; only `LobuleError`s are caught."""
    outcome = "read"
    try:
        with open_slide(path, backend=backend) as slide:
            for read in everything(slide):
                try:
                    read()
                except LobuleError as error:
                    _well_told(error, path)
                    outcome = "partly read" if isinstance(error, DamagedTile) else type(error).__name__
    except LobuleError as error:
        _well_told(error, path)
        outcome = type(error).__name__
    return outcome


def everything(slide: Slide) -> Iterator[Callable[[], object]]:
    """Functions that read the metadata, boxes of 512 px, associated images and a thumbnail."""
    yield lambda: (
        slide.format,
        dict(slide.properties),
        slide.bounds,
        slide.stated_mpp,
        dict(slide.associated),
    )
    for index, level in enumerate(slide.levels):
        columns, rows = -(-level.size.width // 512), -(-level.size.height // 512)
        step = max(1, columns * rows // MAX_BOXES)
        for tile_index in range(0, columns * rows, step):
            box = Box(tile_index % columns * 512, tile_index // columns * 512, 512, 512)
            yield partial(slide.read_level, index, box)
    for name in slide.associated:
        yield partial(slide.read_associated, name)
    if slide.size.area < MAX_THUMBNAIL_PIXELS or _is_sparse(slide):
        yield lambda: slide.thumbnail(256)


def _is_sparse(slide: Slide) -> bool:
    """Whether level 0 stores no tile, so that a thumbnail must be cheap for any size."""
    backend = slide.backend
    return isinstance(backend, TiffBackend) and backend.is_blank(0, Box(0, 0, *slide.size))


def _well_told(error: LobuleError, path: Path) -> None:
    assert isinstance(error, CaseError), f"{type(error).__name__} does not belong to one case"
    assert error.subject and (path.name in str(error) or path.parent.name in str(error)), (
        f"names no file: {error}"
    )
    assert len(str(error)) > len(error.subject) + 10, f"says nothing: {error}"


@dataclass(frozen=True)
class Trial:
    path: Path
    outcome: str
    seconds: float
    peak_bytes: int

    @property
    def failed(self) -> str | None:
        """The problem with the outcome of this file, or None."""
        if self.outcome.startswith("!"):
            return self.outcome[1:]
        if self.seconds > SECONDS:
            return f"took {self.seconds:.0f} s"
        if self.peak_bytes > BYTES:
            return f"took {self.peak_bytes / 1e9:.1f} GB"
        return None


def try_all(paths: list[Path]) -> list[Trial]:
    """Read every file in a child process; start another child after each crash or hang."""
    trials: list[Trial] = []
    waiting = list(paths)
    while waiting:
        done = _one_child(waiting)
        trials += done
        waiting = waiting[len(done) :]
    return trials


def _one_child(paths: list[Path]) -> list[Trial]:
    """Trials of as many files as one child survives; the last one may have ended it."""
    with tempfile.TemporaryFile() as noise:  # C libraries talk to stderr
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.slides.trials"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=noise, text=True,
            cwd=Path(__file__).parents[2], env=os.environ | {"PYTHONFAULTHANDLER": "1"},
        )  # fmt: skip
        assert child.stdin and child.stdout
        trials: list[Trial] = []
        try:
            for path in paths:
                child.stdin.write(f"{json.dumps(str(path))}\n")
                child.stdin.flush()
                line = _line_within(child.stdout, PATIENCE)
                if line is None or not line:
                    child.kill()
                    cause = "hangs" if line is None else f"crashes the process ({_last_words(noise)})"
                    return [*trials, Trial(path, f"!{cause}", PATIENCE, 0)]
                trials.append(Trial(path, *json.loads(line)))
        finally:
            child.stdin.close()
            child.wait()
            child.stdout.close()
    return trials


def _line_within(stream: Any, seconds: float) -> str | None:
    """The next line, "" at the end of the stream, None when time is up."""
    import select

    ready, _, _ = select.select([stream], [], [], seconds)
    return stream.readline() if ready else None


def _last_words(noise: Any) -> str:
    noise.seek(0)
    return noise.read()[-3000:].decode(errors="replace").strip().replace("\n", " | ")[-600:]


def _child() -> None:
    import resource

    _import_backends()
    resource.setrlimit(
        resource.RLIMIT_AS, (16 << 30, 16 << 30)
    )  # limits excessive memory use to this process
    for line in sys.stdin:
        path = Path(json.loads(line))
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak, so that it belongs to this file only
        start = time.process_time()
        try:
            outcome = exercise(path)
            if path.suffix in (".tif", ".svs"):
                exercise(path, "openslide")  # which the other backends shield from most damage
        except BaseException as error:
            outcome = f"!{type(error).__name__}: {error}"
        status_text = Path("/proc/self/status").read_text()
        peak = int(status_text.partition("VmHWM:")[2].split()[0]) * 1024
        print(json.dumps([outcome, time.process_time() - start, peak]), flush=True)


def _import_backends() -> None:
    """Import every backend, so that no file's time includes the imports."""
    from importlib import import_module

    from lobule.slides import READERS

    for where in (*READERS.values(), "lobule.slides.resample", "wsidicom.file"):
        import_module(where)


def report(trials: list[Trial]) -> str:
    slowest = max(trials, key=lambda trial: trial.seconds)
    outcomes = ", ".join(
        f"{count} {name}" for name, count in Counter(t.outcome for t in trials).most_common()
    )
    failures = [
        f"{trial.path.parent.name}/{trial.path.name}: {trial.failed}" for trial in trials if trial.failed
    ]
    return "\n".join(
        [
            f"{len(trials)} damaged files: {outcomes}",
            f"slowest {slowest.seconds:.2f} s of processor time ({slowest.path.parent.name}), "
            f"peak memory {max(trial.peak_bytes for trial in trials) / 1e6:.0f} MB",
            f"{len(failures)} failures",
            *failures,
        ]
    )


if __name__ == "__main__":
    _child()
