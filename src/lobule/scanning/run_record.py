"""Writes the record of a run (`runs/RUN/run.json`) while a scan is running."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

from lobule import __version__
from lobule.cohort import Case
from lobule.results.runs import (
    BEAT_S,
    FAILED_RUN,
    FINISHED,
    INTERRUPTED,
    RECORD,
    RUN_FORMAT,
    RUNNING,
    RUNS,
    new_run_name,
)
from lobule.scanning.contract import EngineSettings
from lobule.scanning.form_cache import device_model, processor_model
from lobule.scanning.pipeline import Stopped
from lobule.scanning.progress import Progress
from lobule.settings import flattened

log = logging.getLogger("lobule.scan")

LIBRARIES = (
    "torch",
    "openvino",
    "torchvision",
    "timm",
    "numpy",
    "tifffile",
    "imagecodecs",
    "openslide-bin",
    "wsidicom",
)
"""Libraries whose versions may change the bytes of a result."""


@dataclass
class RunRecord:
    """A context in which the record of a run is written every few seconds, and once more at its end."""

    root: Path
    metadata: Mapping[str, Any]
    """What does not change during the run: see `run_metadata`."""
    progress: Progress
    work: Mapping[str, float]
    """Estimated work of the cases; may be empty."""
    name: str = field(default_factory=new_run_name)
    after_write: Callable[[str], None] | None = None
    """Called with the name of the run after each writing of its record."""

    def __enter__(self) -> RunRecord:
        self._began, self._beat, self._ended = time.monotonic(), 0, threading.Event()
        self.write(RUNNING)
        self._thread = threading.Thread(target=self._beat_until_end, name="run-record", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if error is None:
            self.write(FINISHED)
        elif isinstance(error, KeyboardInterrupt | Stopped):
            self.write(INTERRUPTED)
        else:
            self.write(FAILED_RUN, error)

    def write(self, state: str, error: BaseException | None = None) -> None:
        """Write the record. A record that cannot be written does not fail the scan."""
        self._beat += 1
        counters, finished = self.progress.counters, dict(self.progress.finished)
        scanned = [name for name, status in finished.items() if status != "skipped"]
        record = {
            "format": RUN_FORMAT,
            "run": self.name,
            "state": state,
            "error": None if error is None else str(error)[:2000],
            "beat": self._beat,
            "updated": time.time(),
            "seconds": round(time.monotonic() - self._began, 3),
            "counts": dict(sorted(Counter(finished.values()).items())),
            "scanned_work": round(sum(self.work.get(name, 1.0) for name in scanned), 3),
            "inputs_sha256": inputs_digest(self.progress.inputs) if state == FINISHED else None,
            "fields": counters.fields_done,
            "pixels": counters.pixels_done,
            "rows": counters.rows_done,
            "tiles_decoded": counters.tiles_decoded,
            "batch_halvings": counters.batch_halvings,
            "lost_devices": counters.lost_devices,
            "reading_s": round(counters.reading_s, 3),
            "model_s": round(counters.model_s, 3),
            "writing_s": round(counters.writing_s, 3),
            **self.metadata,
        }
        try:
            _replace(self.root / RUNS / self.name / RECORD, json.dumps(record, indent=1) + "\n")
        except OSError as problem:
            log.warning("The record of this run cannot be written: %s", problem)
        else:
            if self.after_write is not None:
                self.after_write(self.name)

    def _beat_until_end(self) -> None:
        while not self._ended.wait(BEAT_S):
            self.write(RUNNING)


def _replace(path: Path, text: str) -> None:
    """Replace a file as a whole, without a flush: nothing depends on it after a power failure."""
    new = path.parent / "new" / path.name
    new.parent.mkdir(parents=True, exist_ok=True)
    new.write_text(text, encoding="utf-8")
    new.replace(path)
    new.parent.rmdir()


def run_metadata(
    settings: Mapping[str, Any],
    engine: EngineSettings,
    cases: Sequence[Case],
    cohort_path: str | None,
    shard: tuple[int, int] | None,
    origin: Mapping[str, Any],
    max_ram: int,
) -> dict[str, Any]:
    """Return what a record says about a run from its beginning on: everything that is needed to repeat it.

    Args:
        settings: The contents of `scan.json`.
        engine: The engine settings of this machine.
        cases: The cases of the whole scan.
        cohort_path: The manifest, if the cases come from one.
        shard: The shard, if the run is one of several.
        origin: Further values of the caller, such as the path of the bundle.
        max_ram: The memory limit in bytes.
    """
    return {
        "began": time.time(),
        "command": sys.argv,
        "folder": str(Path.cwd()),
        "shard": None if shard is None else list(shard),
        "hosts": [platform.node()],
        "machine": {
            "system": platform.platform(),
            "processor": processor_model(),
            "cores": os.cpu_count(),
            "memory": physical_memory(),
            "device": device_model(engine.device),
            **({"devices": [device_model(each) for each in engine.devices]} if engine.devices else {}),
            "replicas": engine.replicas,
            "max_ram": max_ram,
        },
        "versions": {"lobule": __version__, "python": platform.python_version(), **library_versions()},
        "bundle": settings.get("bundle", {}),
        "options": settings.get("options", {}),
        "engine": engine.deciding(),
        "cohort": {"path": cohort_path, "cases": len(cases), "sha256": cases_digest(cases)},
        **origin,
    }


def physical_memory() -> int:
    """Return the memory of this machine in bytes."""
    if sys.platform == "win32":
        import psutil  # Its import takes a tenth of a second, so the other systems are asked directly.

        return int(psutil.virtual_memory().total)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def library_versions() -> dict[str, str]:
    """Return the installed versions of `LIBRARIES`."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def cases_digest(cases: Sequence[Case]) -> str:
    """Return a hash of the names, resolutions, regions and views of the cases, independent of their paths."""
    lines = []
    for case in cases:
        box = case.l0_box
        region = None if box is None else [box.x, box.y, box.width, box.height]
        lines.append(json.dumps([case.id, case.mpp, region, {k: len(v) for k, v in case.views.items()}]))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def inputs_digest(inputs: Mapping[str, str]) -> str:
    """Return a hash of the hashes of all input files."""
    return hashlib.sha256(
        "\n".join(f"{name}\0{inputs[name]}" for name in sorted(inputs)).encode()
    ).hexdigest()


def origin_of(bundle_path: Path | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the path of a bundle and the seeds among its settings, for the record of a run."""
    seeds = {name: value for name, value in flattened(config).items() if name.rpartition(".")[2] == "seed"}
    return {"bundle_path": None if bundle_path is None else str(bundle_path), "seeds": seeds}
