"""Write a bundle with int8 models, calibrated on tissue fields, and measure what they change."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lobule.settings import checked_options

if TYPE_CHECKING:
    from torch import Tensor

    from lobule.bundles import Bundle
    from lobule.cohort import Case, Cohort
    from lobule.scanning.contract import Batch, EngineSettings, Model, Predictor, ScanOptions
    from lobule.scanning.openvino_runtime import OpenVinoNet

log = logging.getLogger("lobule.scan")

GIB = 1 << 30
MOST_PIXELS = 50_000_000
"""Pixels on which a network is calibrated or compared; about a thousand tiles of 224 px."""
CALIBRATION_CELLS = 32
"""Cells per side of the fields on which a dense network is calibrated, if it can compute smaller ones."""
SMALLEST_SHARE = 4096
"""The memory limit is divided by at most this number to find the size of these fields."""
REPORT = "int8"
"""The key of the accuracy report in the provenance of a bundle."""


@checked_options
def quantize(
    bundle: str | Path,
    cohort: Cohort | str | Path,
    out: str | Path,
    *,
    fields: int = 200,
    scans: int = 4,
    fresh: bool = False,
    slide_mpp: float | None = None,
    max_ram: int = 2 * GIB,
    trust: bool = False,
) -> Bundle:
    """Write a bundle whose networks OpenVINO computes in int8, with a report of its accuracy.

    The networks of the first pass of the method are calibrated by NNCF on fields with tissue; others stay in
    float32. The report compares int8 with float32 on other fields of the same cases, and compares the slide
    scores of whole scans.

    Args:
        bundle: Folder of the trained model.
        cohort: Cases to calibrate on; a few slides like those that will be scanned are enough.
        out: Folder of the new bundle.
        fields: Number of fields or tiles for the calibration; fewer if they are large.
        scans: Cases that are scanned completely in both precisions for the report.
        fresh: Replace an existing bundle in `out`.
        slide_mpp: The µm/px of slides that do not state it.
        max_ram: Memory in bytes that scans with the new bundle may use; it fixes the size of their fields.
        trust: Allow a TorchScript bundle, which can run code.

    Returns:
        The new bundle; its provenance contains the report.

    Raises:
        MissingExtra: The extra `quantize` is not installed.
        ConfigError: The bundle is already quantised, or the cohort has too few fields.
        UsageError: `out` contains a bundle.
    """
    from lobule.bundles import check_no_bundle, read_bundle, write_bundle
    from lobule.cohort import as_cohort
    from lobule.errors import ConfigError
    from lobule.methods import load
    from lobule.scanning.contract import ScanOptions
    from lobule.scanning.openvino_library import nncf

    check_no_bundle(out, fresh)
    cases, opened = list(as_cohort(cohort)), read_bundle(bundle)
    if opened.has_int8:
        raise ConfigError("the bundle is already quantised", subject=bundle, remedy="Quantise the original")
    nncf()
    options = ScanOptions(mpp=slide_mpp)
    predictor = load(opened, trust=trust)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine, entries = _calibrate(predictor, cases, options, max_ram, fields, folder)
        report = {
            "models": [{key: entry[key] for key in ("file", "shape", "fields")} for entry in entries],
            "fields": _field_differences(predictor, cases, options, engine, folder, fields),
            "scans": _scan_differences(predictor, cases[:scans], options, max_ram, folder),
        }
        copies = {name: opened.file(name) for name in opened.files}
        copies |= {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}
        changed = replace(opened, provenance={**opened.provenance, REPORT: report})
        return write_bundle(out, changed, copies=copies)


def _calibrate(
    predictor: Predictor,
    cases: list[Case],
    options: ScanOptions,
    max_ram: int,
    fields: int,
    folder: Path,
) -> tuple[EngineSettings, list[dict[str, Any]]]:
    """Write the int8 models to a folder; return the engine settings in float32 and the models' entries."""
    from lobule.errors import ConfigError
    from lobule.scanning.contract import OPENVINO, EngineSettings
    from lobule.scanning.device import SLICE, available_cores, replicas_for
    from lobule.scanning.engine import MODEL_SHARE
    from lobule.scanning.int8 import CollectedInputs, write_models
    from lobule.scanning.openvino_runtime import recorded_inputs

    replicas, threads = replicas_for("cpu", available_cores())
    engine = EngineSettings(runtime=OPENVINO, replicas=replicas, replica_threads=threads)
    max_bytes = int(max_ram * MODEL_SHARE) // replicas
    engine = predictor.model.choose_batch(engine, max_bytes, options)
    if engine.batch > SLICE:  # Whole slices, so that all inputs have the same shape.
        engine = replace(engine, batch=engine.batch // SLICE * SLICE)
    predictor.model.move_to_device(engine, options)
    for form in dict.fromkeys((_with_small_fields(predictor.model, engine, max_bytes, options), engine)):
        collected, batches = CollectedInputs(fields), 0
        with recorded_inputs(collected.add):
            for key, batch in _batches(predictor, cases, options, form, fields, first=0):
                _scores(predictor, key, batch)
                batches += 1
        if batches == 0:
            raise ConfigError("the cohort has no field with tissue", remedy="Use a cohort with more tissue")
        complete = {} if form == engine else _input_shapes(predictor, cases, options, engine)
        try:
            return engine, write_models(collected, engine, folder, complete)
        except RuntimeError as error:
            if form == engine:
                raise
            log.info("The networks are calibrated on complete fields: %s", error)
    raise AssertionError("complete fields are the last form")


def _with_small_fields(
    model: Model, engine: EngineSettings, max_bytes: int, options: ScanOptions
) -> EngineSettings:
    """Return the settings with smaller fields if the method allows them: more of them fit into the memory,
    and they contain less glass."""
    from lobule.errors import ConfigError

    small = engine
    for _ in range(SMALLEST_SHARE.bit_length() - 1):
        max_bytes //= 2
        try:
            candidate = model.choose_batch(engine, max_bytes, options)
        except ConfigError:  # Smaller fields than these are impossible.
            break
        small = replace(engine, cells=candidate.cells)
        if small.cells <= CALIBRATION_CELLS:
            break
    return small


def _input_shapes(
    predictor: Predictor, cases: list[Case], options: ScanOptions, engine: EngineSettings
) -> dict[OpenVinoNet, tuple[int, ...]]:
    """Return the shape of each network's input in a scan, from a field of the first case with tissue."""
    from lobule.scanning.openvino_runtime import padded_size, recorded_inputs

    shapes: dict[OpenVinoNet, tuple[int, ...]] = {}

    def record(net: OpenVinoNet, x: Tensor) -> None:
        shapes.setdefault(net, (padded_size(len(x)), *x.shape[1:]))

    with recorded_inputs(record):
        for case in cases:
            for key, batch in _batches(predictor, [case], options, engine, 1, first=0):
                _scores(predictor, key, batch)
            if shapes:
                break
    return shapes


def _batches(
    predictor: Predictor,
    cases: list[Case],
    options: ScanOptions,
    engine: EngineSettings,
    fields: int,
    first: int,
) -> Iterator[tuple[Any, Batch]]:
    """Iterate over every second batch of each case, about `fields` fields in all; `first` is 0 or 1.

    Cases with large fields end earlier, when they have their share of `MOST_PIXELS`.
    """
    from lobule.scanning.tissue_fields import fields_of

    batches = -(-fields // (engine.batch * max(1, len(cases))))
    for case in cases:
        pixels = 0
        for number, (key, batch) in enumerate(fields_of(predictor, case, options, engine, 2 * batches)):
            if pixels > MOST_PIXELS // len(cases):
                break
            if number % 2 == first:
                pixels += batch.pixels[..., 0].numel()
                yield key, batch


def _scores(predictor: Predictor, key: Any, batch: Batch) -> dict[str, NDArray[np.float32]]:
    import torch

    with torch.inference_mode():
        outputs = predictor.model.forward(key, batch)
    return {name: value.float().numpy() for name, value in outputs.items()}


def _field_differences(
    predictor: Predictor,
    cases: list[Case],
    options: ScanOptions,
    engine: EngineSettings,
    folder: Path,
    fields: int,
) -> dict[str, Any]:
    """Compare the scores of cells in int8 with those in float32, first on fields without calibration."""
    int8 = replace(engine, precision="int8", int8_folder=str(folder))
    scores: list[list[NDArray[np.float32]]] = []
    for form in (engine, int8):
        predictor.model.move_to_device(form, options)
        outputs = [
            _scores(predictor, key, batch)
            for first in (1, 0)
            for key, batch in _batches(predictor, cases, options, form, fields, first)
        ]
        scores.append([value.ravel() for output in outputs for value in output.values()])
    exact, rounded = (np.concatenate(values) for values in scores)
    difference = np.abs(exact - rounded)
    return {
        "cells": int(exact.size),
        "largest": float(difference.max()),
        "mean": float(difference.mean()),
        "rank_correlation": rank_correlation(exact, rounded),
    }


def rank_correlation(x: NDArray[np.float32], y: NDArray[np.float32]) -> float | None:
    """Spearman's correlation; None if one of the two is constant."""
    from scipy.stats import rankdata

    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _scan_differences(
    predictor: Predictor, cases: list[Case], options: ScanOptions, max_ram: int, folder: Path
) -> dict[str, Any]:
    """Compare the slide scores of complete scans in int8 with those in float32.

    Cases that have no score, such as blank slides and slides that cannot be read, are listed apart.
    """
    from lobule.cohort import Cohort
    from lobule.results.folder import open_results
    from lobule.scanning.scan import Machine, scan

    identity: Mapping[str, Any] = {"method": "quantize", "fingerprint": "", "classes": []}
    scores: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for precision in ("float32", "int8"):
            machine = Machine("cpu", precision, max_ram, runtime="openvino")
            out = Path(name) / precision
            scan(predictor, identity, Cohort(tuple(cases)), out, options, machine, int8_folder=folder)
            results = open_results(out).cases()
            scores[precision] = {
                case.case_id: dict((case.result or {}).get("scores", {})) for case in results
            }
    changes: dict[str, float] = {}
    for case, exact in scores["float32"].items():
        rounded = scores["int8"][case]
        if common := exact.keys() & rounded.keys():
            changes[case] = max(abs(exact[name] - rounded[name]) for name in common)
    return {
        "cases": len(changes),
        "without_score": [case.id for case in cases if case.id not in changes],
        "largest_change": max(changes.values(), default=None),
        "scores": scores,
    }
