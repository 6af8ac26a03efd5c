"""Chooses the engine settings of a scan, or follows those that it began with."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lobule.allocator import keep_freed_memory, return_freed_memory
from lobule.errors import ConfigError, LobuleError, ModelError, ResultsError, UsageError
from lobule.files import read_json, write_json
from lobule.results.folder import SCAN, Results, record_engine
from lobule.scanning.cards import Cards, choose_devices, is_out_of_memory, named
from lobule.scanning.cases import Progress
from lobule.scanning.choice import RUNTIMES, Measured, RealFields, measure, possible_forms, uses_int8
from lobule.scanning.contract import OPENVINO, EngineSettings, Model, ScanOptions
from lobule.scanning.device import available_cores, max_bytes_on, replicas_for
from lobule.scanning.form_cache import CachedForm, cache_key, cached_form, processor_model, store_form
from lobule.scanning.int8 import with_int8_sizes
from lobule.slides.jpeg_on_gpu import CPU, check_decoder

log = logging.getLogger("lobule.scan")

GIB = 1 << 30
RUN = "run.json"
MODEL_SHARE = 0.55
"""Share of the memory limit for activations."""


@dataclass(frozen=True)
class Machine:
    """The resources that a scan may use. They change results at most by rounding errors."""

    device: str = "auto"
    """A device, several CUDA cards such as "cuda:0,cuda:2", or "auto" for every visible card."""
    precision: str = "auto"
    max_ram: int = 2 * GIB
    """Limit of the memory besides the model, in bytes; it holds for slides of any size."""
    readers: int | None = None
    """Reading threads; None uses one per core."""
    cells: int | None = None
    batch: int | None = None
    replicas: int | None = None
    channels_last: bool | None = None
    """Memory layout of the model; None uses the faster one, measured once per machine and model."""
    runtime: str = "torch"
    """Library that computes the networks on a CPU: "torch", "openvino", or "auto" for the faster one."""
    jpeg_decoder: str | None = None
    """What decodes the JPEG tiles of slides: "cpu" (libjpeg-turbo), or "nvimagecodec" on a CUDA card."""
    cores: int | None = None
    """Cores to use; None uses all cores that this process may use."""

    @property
    def usable_cores(self) -> int:
        """The number of cores to use."""
        return self.cores or available_cores()

    @classmethod
    def with_layout(
        cls,
        layout: str,
        device: str,
        precision: str,
        max_ram: int,
        readers: int | None,
        batch: int | None,
        runtime: str = "torch",
        jpeg_decoder: str | None = None,
    ) -> Machine:
        """Return the resources with a memory layout by name: auto, channels-last or contiguous.

        The environment variable LOBULE_RUNTIME replaces the runtime "auto".
        """
        if layout not in CHANNELS_LAST:
            raise ConfigError(f"unknown memory layout '{layout}'", expected=", ".join(CHANNELS_LAST))
        channels_last = CHANNELS_LAST[layout]
        if runtime == "auto" and (replacement := os.environ.get("LOBULE_RUNTIME")):
            if replacement not in RUNTIMES:
                raise ConfigError(
                    f"the environment variable LOBULE_RUNTIME has the unknown value '{replacement}'",
                    expected=", ".join(RUNTIMES),
                )
            runtime = replacement
        return cls(
            device, precision, max_ram, readers, batch=batch, channels_last=channels_last, runtime=runtime,
            jpeg_decoder=jpeg_decoder,
        )  # fmt: skip


CHANNELS_LAST = {"auto": None, "channels-last": True, "contiguous": False}
"""The value of `Machine.channels_last` for each memory layout."""


def options_to_dict(options: ScanOptions) -> dict[str, Any]:
    """Return the options that influence results, as stored in `scan.json`."""
    values = asdict(options)
    values.pop("budget")
    return values


def choose_engine(
    cards: Cards,
    results: Results,
    options: ScanOptions,
    machine: Machine,
    progress: Progress,
    int8_folder: str = "",
    real_fields: RealFields | None = None,
) -> EngineSettings:
    """Return the engine settings and move the model, or its copies, to the devices.

    A resumed scan uses the settings in `scan.json`, except for the device and the number of replicas, which
    do not change results. A new scan chooses settings and writes them to `scan.json`.
    """
    model, engine = cards.model, _recorded_engine(results)
    if engine is not None and engine.runtime == OPENVINO:
        devices: tuple[str, ...] = (_require_recorded_runtime(engine, machine, int8_folder, results.path),)
    else:
        devices = choose_devices(machine.device)
    devices = cards.copy_model(devices)
    device, several = devices[0], devices if len(devices) > 1 else ()
    if device == "cpu":
        keep_freed_memory()
    replicas, threads = replicas_for(device, machine.usable_cores)
    replicas = machine.replicas or replicas
    if engine is not None:
        engine = replace(engine, device=device, devices=several, replicas=replicas, int8_folder=int8_folder)
        _require_recorded_decoder(engine, results.path)
        _warn_about_fixed_settings(engine, machine, results.path)
        _warn_about_other_machine(machine, device, results.path)
        model.move_to_device(engine, options)
        cards.move_copies(engine, options)
        progress.precision = f"{engine.runtime} {engine.precision}, as recorded in {SCAN}"
        return engine
    jpeg_decoder = machine.jpeg_decoder or CPU
    check_decoder(jpeg_decoder, device)
    engine = EngineSettings(
        device=device, devices=several, replicas=replicas, replica_threads=threads, int8_folder=int8_folder,
        jpeg_decoder=jpeg_decoder,
    )  # fmt: skip
    host_bytes = int(machine.max_ram * MODEL_SHARE)
    max_bytes = min(max_bytes_on(each, host_bytes) for each in devices) // replicas
    engine = model.choose_batch(engine, max_bytes, options)
    engine = replace(engine, cells=machine.cells or engine.cells, batch=machine.batch or engine.batch)
    if uses_int8(engine, machine.precision, machine.runtime):
        engine = with_int8_sizes(engine)
    bundle = results.settings["bundle"]
    while True:
        try:
            engine, measured = _choose_form(model, engine, bundle, options, machine, real_fields)
            break
        except ModelError as error:
            cause = error.__cause__
            if cause is None or not is_out_of_memory(cause) or engine.batch == 1:
                raise
            engine = replace(engine, batch=engine.batch // 2)
            log.warning("The memory of %s is exhausted: trying batches of %d", device, engine.batch)
    cards.move_copies(engine, options)
    log.info("precision %s", measured.sentence())
    progress.precision = measured.sentence()
    run = {
        "measured": asdict(measured),
        "host": platform.node(),
        "processor": processor_model(),
        "cores": machine.usable_cores,
        "device": device,
        **({"devices": several} if several else {}),
        "replicas": replicas,
        "max_ram": machine.max_ram,
        "began": time.time(),
    }
    write_json(results.path / RUN, run)
    names = {"measured": named(device), "all": [named(each) for each in several]} if several else None
    record_engine(results, engine.deciding(), names)
    return engine


def _recorded_engine(results: Results) -> EngineSettings | None:
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
    try:
        return EngineSettings(**recorded)
    except TypeError as error:
        raise ResultsError(
            "the engine settings are invalid", subject=path, actual=str(error), remedy="Use --fresh"
        ) from error


def _require_recorded_runtime(engine: EngineSettings, machine: Machine, int8_folder: str, path: Path) -> str:
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


def _require_recorded_decoder(engine: EngineSettings, path: Path) -> None:
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


def _choose_form(
    model: Model,
    engine: EngineSettings,
    bundle: Mapping[str, Any],
    options: ScanOptions,
    machine: Machine,
    real_fields: RealFields | None,
) -> tuple[EngineSettings, Measured]:
    """Move the model to the device in the cached form, or measure and cache the form first."""
    precision, layout, runtime = machine.precision, machine.channels_last, machine.runtime
    key = cache_key(bundle, engine, options_to_dict(options), precision, layout, runtime)
    form, placed = cached_form(key), None
    if form is None:  # Only then, because finding the possible forms imports OpenVINO.
        forms = possible_forms(engine, precision, layout, runtime)
        if len(forms) == 1 and forms[0].precision == "float32":
            return measure(model, engine, options, precision, layout, runtime, real_fields)
        placed, measured = measure(model, engine, options, precision, layout, runtime, real_fields)
        chosen = CachedForm(placed.precision, placed.channels_last, asdict(measured), placed.runtime)
        form = store_form(key, chosen)
    engine = replace(engine, precision=form.precision, channels_last=form.channels_last, runtime=form.runtime)
    if engine != placed:
        model.move_to_device(engine, options)
    if placed is not None:
        return_freed_memory()  # Memory of the forms of the model that were measured but not chosen.
    return engine, Measured(**form.measurement)


def _warn_about_other_machine(machine: Machine, device: str, path: Path) -> None:
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


def _warn_about_fixed_settings(engine: EngineSettings, machine: Machine, path: Path) -> None:
    """Warn if the user requests settings other than those that the scan began with and still uses."""
    for name in ("precision", "batch", "cells", "channels_last", "runtime", "jpeg_decoder"):
        requested, recorded = getattr(machine, name), getattr(engine, name)
        if requested not in (None, "auto", recorded):
            log.warning(
                "%s: this scan began with %s %s and continues with it; %s is ignored (--fresh starts over)",
                path, name, recorded, requested,
            )  # fmt: skip
