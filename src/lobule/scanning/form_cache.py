"""A cache of the fastest form (runtime, precision and memory layout) of each model on this machine.

Two measurements may choose different forms, and the last bits of every score depend on the form. The first
choice is therefore stored in the user's cache folder, and later scans use it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lobule import __version__
from lobule.errors import LobuleError
from lobule.files import read_json, write_json
from lobule.fingerprints import cache_folder
from lobule.results.checks import is_number
from lobule.results.locks import lock_file
from lobule.scanning.choice import Measured
from lobule.scanning.contract import OPENVINO, EngineSettings
from lobule.scanning.requested_form import PRECISIONS, RUNTIMES

log = logging.getLogger("lobule.scan")

FORMAT = 4


@dataclass(frozen=True)
class CachedForm:
    """A runtime, a precision and a memory layout, with the measurement that chose them."""

    precision: str
    channels_last: bool
    measurement: Mapping[str, Any]
    runtime: str = "torch"


def cache_key(
    bundle: Mapping[str, Any],
    engine: EngineSettings,
    options: Mapping[str, Any],
    precision: str,
    channels_last: bool | None,
    runtime: str = "torch",
) -> dict[str, Any]:
    """Return everything that the choice of the form depends on.

    Args:
        bundle: Method and fingerprint of the model.
        engine: Engine settings with the batch size, the field size and the numbers of replicas and threads.
        options: Options of the scan.
        precision: The precision that the user requested, or "auto".
        channels_last: The memory layout that the user requested, or None.
        runtime: The runtime that the user requested, or "auto".
    """
    return {
        "format": FORMAT,
        "bundle": {name: bundle.get(name) for name in ("method", "fingerprint")},
        "options": {name: options.get(name) for name in ("stride", "refine", "settings")},
        "precision": precision,
        "channels_last": channels_last,
        "runtime": runtime,
        "openvino": None if runtime == "torch" else _openvino_version(),
        "batch": engine.batch,
        "cells": engine.cells,
        "replicas": engine.replicas,
        "replica_threads": engine.replica_threads,
        "processor": processor_model(),
        "device": device_model(engine.device),
        "lobule": __version__,
        "torch": torch.__version__,
    }


def _openvino_version() -> str | None:
    try:
        return version("openvino")
    except PackageNotFoundError:
        return None


def processor_model() -> str:
    """Return the model of the processor, and the vector instructions that torch uses on it."""
    model = platform.processor() or platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}"


def device_model(device: str) -> str:
    """Return the kind of a device. Cards of the same model are considered the same device."""
    if device.startswith("cuda"):
        return f"cuda {torch.cuda.get_device_name(device)}"
    return device


def cached_form(key: Mapping[str, Any]) -> CachedForm | None:
    """Return the form stored for a key, or None. A damaged or unreadable entry is ignored with a warning."""
    try:
        path = _path_of(key)
        return _read(path, key) if path.exists() else None
    except (OSError, LobuleError, RuntimeError, ValueError) as error:
        log.warning("The cached choice of runtime and precision cannot be used and is ignored: %s", error)
        return None


def store_form(key: Mapping[str, Any], form: CachedForm) -> CachedForm:
    """Store a form and return the form to use, which is another one if another process stored it earlier."""
    try:
        path = _path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock_file(path.with_suffix(".lock")):
            with suppress(OSError, LobuleError, ValueError):  # A damaged entry is replaced.
                if path.exists():
                    return _read(path, key)
            write_json(path, {**vars(form), "key": key})
    except (OSError, LobuleError, RuntimeError) as error:
        log.warning(
            "The choice of runtime, precision and layout cannot be cached: %s. Use --runtime, --precision "
            "and --memory-layout to get the same bytes from every run", error,
        )  # fmt: skip
    return form


def _path_of(key: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(_as_json(key).encode()).hexdigest()
    return cache_folder() / "forms" / f"{digest[:32]}.json"


def _as_json(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True, default=str)


def _read(path: Path, key: Mapping[str, Any]) -> CachedForm:
    entry = read_json(path)
    try:
        form = CachedForm(
            entry["precision"], entry["channels_last"], dict(entry["measurement"]), entry["runtime"]
        )
        is_same_key = _as_json(entry["key"]) == _as_json(key)
        measured = Measured(**form.measurement)
        rates = measured.fields_per_s.values()
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}") from error
    if not is_same_key:
        raise ValueError(f"{path} is the choice for another scan")
    if not (
        form.precision in PRECISIONS[1:]
        and form.runtime in RUNTIMES[1:]
        and (form.precision != "int8" or form.runtime == OPENVINO)
        and isinstance(form.channels_last, bool)
        and all(is_number(rate) and rate > 0 for rate in rates)
        and (measured.difference is None or is_number(measured.difference))
    ):
        raise ValueError(f"{path} is damaged: it contains no valid precision and layout")
    return form
