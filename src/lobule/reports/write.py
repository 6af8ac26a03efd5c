"""Write the reports of a results folder, case by case; a report can be resumed like an export."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lobule.cohort import Cohort
from lobule.exports.export import CaseRecord, Export
from lobule.exports.options import ExportOptions
from lobule.exports.run import ExportReport, export_results
from lobule.files import write_text
from lobule.reports import case as case_report
from lobule.reports.cohort import PAGE, CohortReport, cohort_page, evaluated
from lobule.reports.pdf import need_pdf, write_pdf
from lobule.results import Results, open_results
from lobule.results.case_map import CaseMap, map_here
from lobule.results.map_check import why_maps_are_hidden


def write_reports(
    results: str | Path,
    out: str | Path,
    *,
    cases: Sequence[str] = (),
    cohort: Cohort | None = None,
    slides: str | Path | None = None,
    bundle: str | Path | None = None,
    pdf: bool = False,
    min_score: float | None = None,
    show_patients: bool = False,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda case: None,
    map_cases: CaseMap = map_here,
) -> ExportReport:
    """Write `cases/NAME.html` for each case and `index.html` about all of them.

    `lobule.report` describes the arguments, the report that is returned, and the errors.
    """
    if pdf:
        need_pdf()
    # The pages of an earlier call are written again if an evaluation has changed whether maps are drawn.
    hidden = why_maps_are_hidden(Results(Path(results)))
    report = Export(
        "report",
        "one page per case, and one about all cases",
        partial(case_report.write, pdf=pdf),
        kinds=frozenset({"slide", "image", "exam"}),
        supports=frozenset({"min_score", "show_patients"}),
        finish=partial(_finish, results=Path(results), cohort=cohort, bundle=bundle, pdf=pdf),
        variant=("pdf" if pdf else "html") + ("" if hidden is None else f" {hidden}"),
    )
    options = ExportOptions(min_score=min_score, show_patients=show_patients)
    return export_results(
        results, report, out, cases=cases, cohort=cohort, slides=slides, options=options, fresh=fresh,
        progress=progress, map_cases=map_cases,
    )  # fmt: skip


def _finish(
    records: Sequence[CaseRecord],
    folder: Path,
    options: ExportOptions,
    *,
    results: Path,
    cohort: Cohort | None,
    bundle: str | Path | None,
    pdf: bool,
) -> None:
    from lobule.bundles import MODEL, read_bundle
    from lobule.files import read_json

    model = None
    if bundle is not None:
        read_bundle(bundle)
        model = read_json(Path(bundle) / MODEL)
    opened = open_results(results)
    data, plots, note = evaluated(opened, cohort)
    page = cohort_page(CohortReport(opened, records, cohort, data, plots, note, model))
    write_text(folder / f"{PAGE}.html", page)
    if pdf:
        write_pdf(page, folder / f"{PAGE}.pdf")
