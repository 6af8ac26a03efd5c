"""Hand finished results to other software and to readers, and read corrected annotations back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lobule.api.runners import Runner, case_map
from lobule.settings import checked_options

if TYPE_CHECKING:
    from lobule.cohort import Cohort
    from lobule.exports.run import ExportReport


@checked_options
def export(
    results: str | Path,
    to: str,
    out: str | Path,
    *,
    cases: Sequence[str] = (),
    cohort: Cohort | str | Path | None = None,
    slides: str | Path | None = None,
    layers: Sequence[str] = (),
    min_score: float | None = None,
    map_name: str | None = None,
    uncropped: bool = False,
    source: str | Path | None = None,
    ngff: Literal["0.5", "0.4"] = "0.5",
    show_patients: bool = False,
    fresh: bool = False,
    store: str | None = None,
    runner: Runner = "local",
    address: str | None = None,
    workers: int | None = None,
    worker_cpus: int | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> ExportReport:
    """Write results in the format of other software.

    Cases that an earlier call exported and that have not changed are skipped.

    Args:
        results: A results folder or its URL. Its scan may still be running, and its slides may be gone.
        to: Name of the format, such as "qupath"; `lobule.exports.EXPORTS` lists them.
        out: Folder for the files.
        cases: Names of the cases to export; by default all.
        cohort: Rows of the cases: patients, sites and paths.
        slides: Folder that is searched for images that have moved.
        layers: Layers to write, if the format has a choice: "findings", "tissue", "tiles", "reviews".
        min_score: Leave out findings and tiles with a lower score.
        map_name: The map to export; by default the densest.
        uncropped: Write coordinates for a QuPath that does not crop slides to their bounds.
        source: Folder with DICOM files of the slides, which DICOM objects refer to.
        ngff: Version of OME-Zarr.
        show_patients: Write the names of patients.
        fresh: Write all cases again.
        store: Address of a DICOMweb server on which the DICOM objects are stored as well. Objects that it has
            are not replaced.
        runner: "local" works in this process; "ray" on workers of Ray (extra `ray`), one per core.
        address: Address of a Ray cluster; by default, Ray is started on this machine.
        workers: Number of workers on Ray.
        worker_cpus: CPU cores of a worker on Ray.
        progress: Called with the name of each case that is done.

    Returns:
        A report that lists the files, and what is missing, for each case.

    Raises:
        ConfigError: The format does not exist, or does not support an option.
        MissingExtra: The format needs an extra that is not installed.
        ResultsError: `results` is not a results folder, or `out` cannot be written.

    Examples:
        >>> report = export("results", "qupath", "overlays")  # doctest: +SKIP
    """
    from lobule.evaluation.options import as_tuple
    from lobule.exports import ExportOptions
    from lobule.exports.run import export_results
    from lobule.exports.store import require_storable, store_export
    from lobule.results import local_results

    server = None if store is None else require_storable(to, store)
    chosen_layers: Any = as_tuple("layers", layers) or None
    options = ExportOptions(
        layers=chosen_layers,
        min_score=min_score,
        map_name=map_name,
        uncropped=uncropped,
        source=None if source is None else Path(source),
        ngff=ngff,
        show_patients=show_patients,
    )
    chosen = as_tuple("cases", cases)
    with case_map(runner, address, workers, worker_cpus) as map_cases:
        outcome = export_results(
            local_results(results, cases=chosen), to, out, cases=chosen, cohort=_rows(cohort), slides=slides,
            options=options, fresh=fresh, progress=progress, map_cases=map_cases,
        )  # fmt: skip
    return outcome if server is None else replace(outcome, store=store_export(outcome, server))


@checked_options
def report(
    results: str | Path,
    out: str | Path,
    *,
    cases: Sequence[str] = (),
    cohort: Cohort | str | Path | None = None,
    slides: str | Path | None = None,
    bundle: str | Path | None = None,
    pdf: bool = False,
    min_score: float | None = None,
    show_patients: bool = False,
    fresh: bool = False,
    runner: Runner = "local",
    address: str | None = None,
    workers: int | None = None,
    worker_cpus: int | None = None,
    progress: Callable[[str], None] = lambda case: None,
) -> ExportReport:
    """Write one self-contained page per case, and one about all cases.

    Pages that an earlier call wrote and that have not changed are skipped.

    Args:
        results: A results folder or its URL. Its scan may still be running, and its slides may be gone.
        out: Folder for the pages.
        cases: Names of the cases; by default all.
        cohort: Labels, sites and paths of the cases. With labels, the page about all has an evaluation.
        slides: Folder that is searched for images that have moved.
        bundle: The bundle of the results, whose provenance answers items of CLAIM 2024.
        pdf: Also write each page as PDF.
        min_score: Leave out findings with a lower score.
        show_patients: Write the names of patients.
        fresh: Write all pages again.
        runner: "local" works in this process; "ray" on workers of Ray (extra `ray`), one per core.
        address: Address of a Ray cluster; by default, Ray is started on this machine.
        workers: Number of workers on Ray.
        worker_cpus: CPU cores of a worker on Ray.
        progress: Called with the name of each case that is done.

    Returns:
        A report that lists the pages, and what is missing, for each case.

    Raises:
        MissingExtra: `pdf` is set, and the extra "report" is not installed.
        ResultsError: `results` is not a results folder, or `out` cannot be written.

    Examples:
        >>> pages = report("results", "pages", cohort="cohort.csv")  # doctest: +SKIP
    """
    from lobule.evaluation.options import as_tuple
    from lobule.reports.write import write_reports
    from lobule.results import local_results

    chosen = as_tuple("cases", cases)
    with case_map(runner, address, workers, worker_cpus) as map_cases:
        return write_reports(
            local_results(results, cases=chosen), out, cases=chosen, cohort=_rows(cohort), slides=slides,
            bundle=bundle, pdf=pdf, min_score=min_score, show_patients=show_patients, fresh=fresh,
            progress=progress, map_cases=map_cases,
        )  # fmt: skip


@checked_options
def import_annotations(
    cohort: Cohort | str | Path,
    folder: str | Path,
    out: str | Path,
    *,
    uncropped: bool = False,
    groups: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read annotations of other software for the cases of a cohort, and write a manifest with them.

    Args:
        cohort: A cohort or the path of its manifest.
        folder: Annotations of QuPath, ASAP, COCO, DSA or DICOM, each named like its case.
        out: Folder for one GeoJSON file per case, in level-0 pixels of the whole slide, and `cohort.csv`.
        uncropped: GeoJSON is not relative to the bounds of the slide. QuPath crops slides to their bounds.
        groups: The kinds of additional classes: "tumour", "exclusion", "normal" or "other".

    Returns:
        The manifest, the cases with and without a new annotation, and the warnings of each file.

    Raises:
        UsageError: The folder has no annotation of any case, or a slide cannot be read.
        AnnotationError: An annotation is damaged.
    """
    from lobule.annotations.importing import import_annotations as run
    from lobule.cohort import as_cohort

    return run(as_cohort(cohort), folder, out, uncropped=uncropped, groups=groups)


def _rows(cohort: Cohort | str | Path | None) -> Cohort | None:
    """Return the cohort of finished results. Its slides may be gone, so its files are not checked."""
    from lobule.cohort import Cohort, read_cohort

    if cohort is None or isinstance(cohort, Cohort):
        return cohort
    return read_cohort(cohort, check_files=False)
