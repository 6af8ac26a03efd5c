"""The engine settings in `scan.json`: reading them, and checking that this machine can follow them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from lobule.errors import DamagedResults, LobuleError, ResultsError, UsageError
from lobule.files import read_json
from lobule.results.checks import is_count
from lobule.results.folder import SCAN, Results
from lobule.scanning.contract import OPENVINO, EngineSettings
from lobule.scanning.machine import GIB, Machine
from lobule.scanning.requested_form import PRECISIONS, RUNTIMES
from lobule.slides.jpeg_on_gpu import DECODERS, check_decoder

log = logging.getLogger("lobule.scan")

RUN = "run.json"
"""The file with the measurement at the beginning of a scan."""
START_OVER = "Scan into another folder, or start over with --fresh"
MOST_THREADS = 4096


def _is_positive(value: object) -> bool:
    return is_count(value) and value != 0


IS_VALID: Mapping[str, Callable[[Any], bool]] = {
    "precision": lambda name: name in PRECISIONS[1:],
    "runtime": lambda name: name in RUNTIMES[1:],
    "batch": _is_positive,
    "cells": _is_positive,
    "pieces": _is_positive,
    "replica_threads": lambda threads: _is_positive(threads) and threads <= MOST_THREADS,
    "channels_last": lambda layout: isinstance(layout, bool),
    "jpeg_decoder": lambda name: name in DECODERS,
}
"""For each engine setting that scores depend on, whether a value of it is valid."""


def recorded_engine(results: Results) -> EngineSettings | None:
    """Return the engine settings in `scan.json`, or None if nothing was scanned yet."""
    recorded = results.settings.get("engine")
    path = results.path / SCAN
    if recorded is None:
        if next(results.cases(), None) is None:
            return None
        raise ResultsError(
            "the results were created by an older version of Lobule",
            subject=path,
            expected="the engine settings in scan.json",
            remedy="Use another results folder, or start over with --fresh",
        )
    return checked_engine(recorded, path)


def checked_engine(recorded: object, source: str | Path) -> EngineSettings:
    """Return engine settings that were read from a file.

    Args:
        recorded: The settings in the file.
        source: The file or the run, for the error message.

    Raises:
        ResultsError: A newer version of Lobule wrote settings that this one lacks, or a value is invalid.
    """
    if not isinstance(recorded, dict) or "batch" not in recorded:
        raise DamagedResults("the engine settings are missing", subject=source, remedy=START_OVER)
    names = {setting.name for setting in fields(EngineSettings)}
    if unknown := sorted(set(recorded) - names):
        raise ResultsError(
            "the engine settings were written by another version of Lobule",
            subject=source,
            actual=f"unknown settings {', '.join(unknown)}",
            remedy="Continue the scan with that version, or start over with --fresh",
        )
    wrong = [name for name, holds in IS_VALID.items() if name in recorded and not holds(recorded[name])]
    if recorded.get("precision") == "int8" and recorded.get("runtime") != OPENVINO:
        wrong.append("runtime")
    if wrong:
        raise DamagedResults(
            "the engine settings are damaged",
            subject=source,
            actual=", ".join(f"{name} {json.dumps(recorded[name])[:80]}" for name in wrong),
            remedy=START_OVER,
        )
    return EngineSettings(**recorded)


def require_recorded_runtime(engine: EngineSettings, machine: Machine, int8_folder: str, path: Path) -> str:
    """Return the device of a scan that began with OpenVINO.

    Raises:
        ResultsError: This machine or this bundle cannot continue the scan with the recorded runtime.
    """
    from lobule.scanning.openvino_library import is_installed, openvino, runs_bfloat16

    problem = None
    try:
        if machine.device not in ("auto", "cpu"):
            problem = f"--device {machine.device}"
        elif not is_installed():
            problem = "an environment without the extra 'openvino'"
        else:
            openvino()
    except UsageError as error:
        problem = error.problem if error.actual is None else f"{error.problem} ({error.actual})"
    if problem is None and engine.precision == "bfloat16" and not runs_bfloat16():
        problem = "a processor without units for bfloat16"
    if problem is None and engine.precision == "int8" and not int8_folder:
        problem = "a bundle without int8 models"
    if problem is not None:
        raise ResultsError(
            "this worker cannot continue the scan as it began",
            subject=path / SCAN,
            expected=f"the runtime openvino in {engine.precision} on a CPU",
            actual=problem,
            remedy="Continue it where that runtime is available, or start over with --fresh",
        )
    return "cpu"


def require_recorded_decoder(engine: EngineSettings, path: Path) -> None:
    """Check that this machine can decode JPEG tiles as the scan began to do."""
    try:
        check_decoder(engine.jpeg_decoder, engine.device)
    except UsageError as error:
        raise ResultsError(
            "this worker cannot continue the scan as it began",
            subject=path / SCAN,
            expected=f"JPEG tiles decoded by {engine.jpeg_decoder}",
            actual=error.message(),
            remedy="Continue it where that decoder is available, or start over with --fresh",
        ) from error


def warn_about_other_machine(machine: Machine, device: str, path: Path) -> None:
    """Warn if the device is of another kind than at the beginning, or if the memory limit is now lower.

    Fields and batches keep the size that was chosen for the first limit.
    """
    try:
        run = read_json(path / RUN)
        first_max_ram, first_device = int(run["max_ram"]), str(run["device"])
    except (LobuleError, KeyError, TypeError, ValueError):  # They are only needed for these warnings.
        return
    if machine.max_ram < first_max_ram:
        log.warning(
            "%s: fields and batches keep the size that was chosen for %.2g GiB, so the scan may exceed the "
            "limit of %.2g GiB (--fresh starts over)", path, first_max_ram / GIB, machine.max_ram / GIB,
        )  # fmt: skip
    if device.partition(":")[0] != first_device.partition(":")[0]:
        log.warning(
            "%s: this scan began on %s and continues on %s, which rounds differently: scores depend slightly "
            "on the device that computed them (--fresh starts over)", path, first_device, device,
        )  # fmt: skip


def warn_about_fixed_settings(engine: EngineSettings, machine: Machine, path: Path) -> None:
    """Warn if the user requests settings other than those that the scan began with and still uses."""
    for name in ("precision", "batch", "cells", "channels_last", "runtime", "jpeg_decoder"):
        requested, recorded = getattr(machine, name), getattr(engine, name)
        if requested not in (None, "auto", recorded):
            log.warning(
                "%s: this scan began with %s %s and continues with it; %s is ignored (--fresh starts over)",
                path, name, recorded, requested,
            )  # fmt: skip
