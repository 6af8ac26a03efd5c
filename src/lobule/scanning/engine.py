"""Chooses the engine settings of a scan, or follows those that it began with."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from lobule.allocator import keep_freed_memory, return_freed_memory
from lobule.errors import ModelError
from lobule.files import write_json
from lobule.results.folder import SCAN, Results, record_engine
from lobule.scanning.cards import Cards, choose_devices, is_out_of_memory, named
from lobule.scanning.choice import (
    Measured,
    RealFields,
    measure,
    openvino_allowed,
    possible_forms,
    uses_int8,
)
from lobule.scanning.contract import OPENVINO, EngineSettings, Model, ScanOptions
from lobule.scanning.device import max_bytes_on, replicas_for
from lobule.scanning.form_cache import CachedForm, cache_key, cached_form, processor_model, store_form
from lobule.scanning.int8 import with_int8_sizes
from lobule.scanning.machine import GIB, Machine
from lobule.scanning.progress import Progress
from lobule.scanning.recorded_engine import (
    RUN,
    recorded_engine,
    require_recorded_decoder,
    require_recorded_runtime,
    warn_about_fixed_settings,
    warn_about_other_machine,
)
from lobule.slides.jpeg_on_gpu import CPU, check_decoder

log = logging.getLogger("lobule.scan")

MODEL_SHARE = 0.55
"""Share of the memory limit for activations."""


REFINEMENT = 2
"""The number of the rule by which `--refine` chooses cells and the size of their fields. It changes with the
rule, so that all cases in a results folder are refined by the same one."""


def recorded_options(options: ScanOptions) -> dict[str, Any]:
    """Return what `scan.json` records of the options. Only a scan with the same values continues it."""
    refinement = {"refinement": REFINEMENT} if options.refine else {}
    return {"options": options_to_dict(options), **refinement}


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
    model, engine = cards.model, recorded_engine(results)
    if engine is not None and engine.runtime == OPENVINO:
        devices: tuple[str, ...] = (require_recorded_runtime(engine, machine, int8_folder, results.path),)
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
        require_recorded_decoder(engine, results.path)
        warn_about_fixed_settings(engine, machine, results.path)
        warn_about_other_machine(machine, device, results.path)
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
        engine = _with_int8_sizes(engine, machine)
    elif _lacks_openvino(engine, machine):
        log.warning(
            "The int8 models of the bundle are not used, because OpenVINO is not installed. "
            "Install it: pip install 'lobule[openvino]'"
        )
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
    # OpenVINO may have been damaged since it was chosen. Then every case would fail.
    is_unusable = form is not None and form.runtime == OPENVINO and not openvino_allowed(runtime)
    if form is None or is_unusable:
        forms = possible_forms(engine, precision, layout, runtime)
        placed, measured = measure(model, engine, options, precision, layout, runtime, real_fields)
        if is_unusable or (len(forms) == 1 and forms[0].precision == "float32"):
            return placed, measured  # There was no choice that another scan would have to follow.
        chosen = CachedForm(placed.precision, placed.channels_last, asdict(measured), placed.runtime)
        form = store_form(key, chosen)
    engine = replace(engine, precision=form.precision, channels_last=form.channels_last, runtime=form.runtime)
    if engine != placed:
        model.move_to_device(engine, options)
    if placed is not None:
        return_freed_memory()  # Memory of the forms of the model that were measured but not chosen.
    return engine, Measured(**form.measurement)


def _with_int8_sizes(engine: EngineSettings, machine: Machine) -> EngineSettings:
    """Return the engine settings with the sizes of the int8 models, and warn if others were expected."""
    sized = with_int8_sizes(engine)
    if machine.batch not in (None, sized.batch):
        log.warning(
            "The int8 models of the bundle compute batches of %d: --batch %d is ignored",
            sized.batch, machine.batch,
        )  # fmt: skip
    if sized.cells > engine.cells or (machine.batch is None and sized.batch > engine.batch):
        log.warning(
            "The int8 models of the bundle are for larger fields or batches than fit into %.2g GiB with %d "
            "batches at the same time, so the scan may exceed this limit. Raise --max-ram, or quantise the "
            "bundle with a lower --max-ram", machine.max_ram / GIB, engine.replicas,
        )  # fmt: skip
    return sized


def _lacks_openvino(engine: EngineSettings, machine: Machine) -> bool:
    """Whether int8 would be used if OpenVINO were installed."""
    from lobule.scanning.openvino_library import is_installed

    is_default = (machine.precision, machine.runtime, engine.device) == ("auto", "auto", "cpu")
    return is_default and bool(engine.int8_folder) and not is_installed()
