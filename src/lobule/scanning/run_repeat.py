"""Repeats a run from its record: the same bundle, options, cases and engine settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lobule import __version__
from lobule.cohort import Case
from lobule.errors import ConfigError, ResultsError
from lobule.results.folder import Results, record_engine
from lobule.results.runs import Run
from lobule.scanning.contract import ScanOptions
from lobule.scanning.progress import Progress
from lobule.scanning.recorded_engine import checked_engine
from lobule.scanning.run_record import cases_digest, inputs_digest, library_versions
from lobule.settings import flattened
from lobule.tissue import TissueConfig

log = logging.getLogger("lobule.scan")


def require_same_run(
    run: Run, bundle: Mapping[str, Any], options: Mapping[str, Any], cases: Sequence[Case]
) -> None:
    """Refuse to repeat a run with another bundle, other options or other cases.

    Raises:
        ConfigError: The bundle, the options or the cases differ from those of the run.
    """
    for name, recorded, current in (
        ("bundle", (run.data.get("bundle") or {}).get("fingerprint"), bundle.get("fingerprint")),
        ("options", run.data.get("options"), json.loads(json.dumps(options))),
        ("cohort", (run.data.get("cohort") or {}).get("sha256"), cases_digest(cases)),
    ):
        if recorded != current:
            raise ConfigError(
                f"the {name} differs from the {name} of the run to repeat",
                subject=run.name,
                expected=str(recorded)[:300],
                actual=str(current)[:300],
                remedy=f"Pass the {name} that the run used",
            )
    versions = {"lobule": __version__, **library_versions()}
    recorded_versions = run.data.get("versions") or {}
    different = [name for name in versions if recorded_versions.get(name, versions[name]) != versions[name]]
    if different:
        log.warning(
            "The run to repeat used other versions of %s; the last bits of scores may differ",
            ", ".join(f"{name} ({recorded_versions[name]}, now {versions[name]})" for name in different),
        )


def options_of_run(run: Run, requested: ScanOptions) -> ScanOptions:
    """Return the options of an earlier run.

    Raises:
        ConfigError: The user requests other options than the defaults and than those of the run.
        ResultsError: The record of the run is damaged.
    """
    try:
        values = dict(run.data["options"])
        tissue = None if values.pop("tissue") is None else TissueConfig(**run.data["options"]["tissue"])
        recorded = ScanOptions(tissue=tissue, **values)
    except (KeyError, TypeError, ValueError) as error:
        raise ResultsError("the record of a run is damaged", subject=run.name, actual=repr(error)) from error
    if requested not in (ScanOptions(), recorded):
        raise ConfigError(
            "the options differ from those of the run to repeat",
            subject=run.name,
            expected=_differences(recorded, requested),
            actual=_differences(requested, recorded),
            remedy="Remove the options; they are those of the run",
        )
    return recorded


def _differences(options: ScanOptions, compared_with: ScanOptions) -> str:
    """Return the options whose values differ from those of a second set, as text."""
    values, other_values = flattened(asdict(options)), flattened(asdict(compared_with))
    different = [name for name in values if name not in other_values or values[name] != other_values[name]]
    return ", ".join(f"{name} {json.dumps(values[name])}" for name in different)[:500]


def use_engine_of(run: Run, results: Results) -> None:
    """Let a scan compute with the engine settings of an earlier run.

    The caller must hold the lock of the folder or of its settings.

    Raises:
        ResultsError: The folder contains results that were computed with other engine settings.
    """
    checked_engine(run.data.get("engine"), run.name)
    recorded, existing = run.data["engine"], results.settings.get("engine")
    if existing is None:
        record_engine(results, recorded)
        return
    names = sorted({*recorded, *existing} - {"pieces"})  # A scan increases `pieces` when memory runs out.
    if different := [name for name in names if recorded.get(name) != existing.get(name)]:
        raise ResultsError(
            "this folder contains results with other engine settings than those of the run to repeat",
            subject=results.path,
            expected=", ".join(f"{name} {json.dumps(recorded.get(name))}" for name in different),
            actual=", ".join(f"{name} {json.dumps(existing.get(name))}" for name in different),
            remedy="Use another results folder, or start over with --fresh",
        )


def warn_about_other_inputs(repeat: Run | None, progress: Progress, shard: tuple[int, int] | None) -> None:
    """Warn if a repeated run had another shard, or if its input files are no longer the same."""
    if repeat is None:
        return
    recorded_shard = repeat.data.get("shard")
    if recorded_shard != (None if shard is None else list(shard)):
        if recorded_shard:
            text = "/".join(map(str, recorded_shard))
            log.warning(
                "The run to repeat scanned only shard %s; add --shard %s for the same cases", text, text
            )
        return  # The record has one hash of all inputs, so those of other cases cannot be compared.
    recorded = repeat.data.get("inputs_sha256")
    if recorded is not None and recorded != inputs_digest(progress.inputs):
        log.warning("The input files differ from those of the run to repeat, so results may differ")
