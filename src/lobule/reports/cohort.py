"""The page of a cohort: cases with links, evaluation, scores by site, failures, run times and CLAIM 2024."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lobule import __version__
from lobule.cohort import Cohort
from lobule.errors import LobuleError
from lobule.exports.export import CaseRecord
from lobule.reports.case import MISUSE
from lobule.reports.case_tables import bundle_fields
from lobule.reports.claim import claim_table
from lobule.reports.comparison import comparison_table
from lobule.reports.page import (
    estimate_cell,
    fields_table,
    html_page,
    number,
    research_use,
    table,
    text,
    words,
)
from lobule.results import Results

METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
"""The date and the addresses that matplotlib writes into a plot."""
PAGE = "index"
MOST_SITES = 12
MOST_POINTS = 400
"""Cases of a site that are drawn as single points; more are drawn as every n-th of the sorted scores."""
STYLE = """
.plots { display: flex; flex-wrap: wrap; gap: 1rem; }
.plots svg { --ink: #26242c; background: #fff; border: 1px solid var(--line); border-radius: 4px; }
@media print { .plots { display: block; } .plots figure { display: inline-block; width: 32%; } }
"""
"""The plots have a white background on dark screens, too, so their text must stay dark."""


@dataclass(frozen=True)
class CohortReport:
    """What the page of a cohort is made of."""

    results: Results
    records: Sequence[CaseRecord]
    cohort: Cohort | None = None
    evaluation: Mapping[str, Any] | None = None
    plots: tuple[str, ...] = ()
    """SVG of the plots of the evaluation."""
    evaluation_note: str | None = None
    """Why there is no evaluation."""
    bundle: Mapping[str, Any] | None = None
    """`model.json` of the bundle, if it was named."""

    @property
    def settings(self) -> Mapping[str, Any]:
        try:
            return self.results.settings
        except LobuleError:
            return {}


def evaluated(
    report_results: Results, cohort: Cohort | None
) -> tuple[dict[str, Any] | None, tuple[str, ...], str | None]:
    """Evaluate results with known truth: the numbers and the plots as SVG, or why it is impossible."""
    from lobule.evaluation import Options, evaluate_source
    from lobule.evaluation.plots import draw_evaluation
    from lobule.evaluation.sources import open_results_source

    if cohort is None:
        return None, (), "There is no cohort with labels; name one with --cohort."
    planned = set(report_results.planned())
    cohort = cohort.where(lambda case: case.id in planned)  # The others, such as training cases, are no part.
    options = Options(resamples=1000)
    try:
        evaluation = evaluate_source(open_results_source(report_results.path, options), cohort, options)
    except LobuleError as error:
        return None, (), f"The results cannot be evaluated: {error.problem}."
    data = dict(evaluation.data)
    if not data["tasks"] and data["lesions"] is None:
        return None, (), "No case has both a label and a score."
    plots: list[str] = []
    try:
        with tempfile.TemporaryDirectory(prefix="lobule-report-") as folder:
            for path in draw_evaluation(data, Path(folder)):
                if path.suffix == ".svg":
                    content = path.read_text(encoding="utf-8")
                    without_metadata = METADATA.sub("", content[content.index("<svg") :])
                    plots.append(without_metadata)
    except LobuleError as error:
        return data, (), f"The plots cannot be drawn: {error.problem}."
    return data, tuple(plots), None


def cohort_page(report: CohortReport) -> str:
    """Return the page of a cohort."""
    sections = [
        research_use(),
        fields_table(_heading(report)),
        "<h2>Evaluation</h2>",
        _evaluation(report),
        "<h2>Scores</h2>",
        *_distributions(report),
        "<h2>Cases</h2>",
        _cases(report),
        "<h2>What failed and what is missing</h2>",
        _failures(report),
        "<h2>Run times</h2>",
        _run_times(report),
        "<h2>How it was made</h2>",
        fields_table(_provenance(report)),
        "<h2 class=page>CLAIM 2024</h2>",
        claim_table(claim_answers(report)),
        "<h2>What this must not be used for</h2>",
        f"<p>{text(MISUSE)}</p>",
    ]
    return html_page(f"Cohort report: {report.results.path.resolve().name}", sections, STYLE)


def _heading(report: CohortReport) -> Iterator[tuple[str, object]]:
    bundle = report.settings.get("bundle") or {}
    statuses = Counter(record.status for record in report.records)
    yield "method", bundle.get("method")
    yield "cases", ", ".join(f"{count:,} {status}" for status, count in statuses.most_common())
    findings = sum(int(record.summary.get("findings") or 0) for record in report.records)
    yield "findings", f"{findings:,}"
    if report.cohort is not None:
        yield "patients", f"{len(report.cohort.patients()):,}"


# -- evaluation ---------------------------------------------------------------------------------------------


def _evaluation(report: CohortReport) -> str:
    blocks = []
    data = report.evaluation
    if data is not None:
        if data["tasks"] and data["lesions"] is not None:
            method = (report.settings.get("bundle") or {}).get("method") or "results"
            lesions = data["lesions"]["all"]["lesions"]
            blocks.append(comparison_table({str(method): data}))
            blocks.append(f"<p class=note>FROC over {lesions:,} lesions; at: false positives per slide.</p>")
        for name, task in data["tasks"].items():
            blocks.append(f"<h3>{text(name)}, {text(task['unit'])}</h3>{_task(task)}")
        if data["lesions"] is not None and not data["tasks"]:
            blocks.append(f"<h3>Lesions</h3>{_lesions(data['lesions']['all'])}")
        blocks.append(f"<p class=note>{text(data['overlap']['sentence'])}</p>")
        blocks += [f"<p class=note>{text(note)}</p>" for note in data["notes"]]
        blocks.append("<p class=note>In small type 95&nbsp;% intervals; patients were resampled.</p>")
    if report.plots:
        figures = "".join(f"<figure>{plot}</figure>" for plot in report.plots)
        blocks.append(f"<div class=plots>{figures}</div>")
    if report.evaluation_note:
        blocks.append(f"<p>{text(report.evaluation_note)}</p>")
    return "".join(blocks)


def _task(task: Mapping[str, Any]) -> str:
    rows = []
    for column, value, block in _blocks(task):
        shown = [
            text(f"{column} {value}".strip()),
            number(int(block[task["unit"]])),
            number(int(block["positive"])),
        ]
        rows.append([*shown, *(estimate_cell(block[name]) for name in ("auroc", "auprc"))])
    return table(["", task["unit"], "positive", "AUROC", "AUPRC"], rows, numeric=(1, 2))


def _blocks(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    yield "", "all", report["all"]
    for column, values in report["by"].items():
        for value, block in values.items():
            yield column, value, block


def _lesions(block: Mapping[str, Any]) -> str:
    at = block["froc"]["sensitivity_at"] or {}
    row = [number(int(block["lesions"])), estimate_cell(block["froc_score"])]
    row += [number(value, 2) for value in at.values()]
    return table(["lesions", "FROC", *(f"at {rate}" for rate in at)], [row], numeric=(0,))


# -- scores -------------------------------------------------------------------------------------------------


def _distributions(report: CohortReport) -> Iterator[str]:
    names = dict.fromkeys(name for record in report.records for name in record.scores)
    if not names:
        yield "<p>There are no scores.</p>"
    for name in names:
        by_site: dict[str, list[float]] = {}
        for record in report.records:
            if name in record.scores:
                by_site.setdefault(str(record.summary.get("site") or "no site"), []).append(
                    record.scores[name]
                )
        yield f"<h3>{text(name)}</h3>{strip_plot(by_site)}"


def strip_plot(by_site: Mapping[str, Sequence[float]], width: int = 640, row_height: int = 34) -> str:
    """Draw the scores of each site as points on a line, with median and quartiles, as SVG."""
    sites = sorted(by_site, key=lambda site: -len(by_site[site]))[:MOST_SITES]
    low = min(0.0, *(min(by_site[site]) for site in sites))
    high = max(1.0, *(max(by_site[site]) for site in sites))
    left, right = 170, width - 20

    def at(value: float) -> float:
        return left + (right - left) * (value - low) / (high - low)

    marks = []
    for row, site in enumerate(sites):
        values = np.sort(np.array(by_site[site], np.float64))
        y = 20 + row * row_height
        lower, median, upper = np.quantile(values, [0.25, 0.5, 0.75])
        marks.append(
            f"<text x={left - 10} y={y + 4} text-anchor=end>{text(site[:18])} ({len(values)})</text>"
        )
        marks.append(f"<line x1={left} x2={right} y1={y} y2={y} stroke='var(--line)' />")
        marks.append(
            f"<rect x={at(lower):.1f} y={y - 8} width={max(1.0, at(upper) - at(lower)):.1f} height=16 "
            "fill='none' stroke='var(--faint)' />"
            f"<line x1={at(median):.1f} x2={at(median):.1f} y1={y - 8} y2={y + 8} stroke='var(--ink)' "
            "stroke-width=2 />"
        )
        shown = values[:: max(1, len(values) // MOST_POINTS)]
        marks += [
            f"<circle cx={at(value):.1f} cy={y} r=3 fill='var(--first)' fill-opacity=.45 />"
            for value in shown
        ]
    bottom = 20 + len(sites) * row_height
    for tick in (low, (low + high) / 2, high):
        marks.append(f"<text x={at(tick):.0f} y={bottom} text-anchor=middle>{tick:.3g}</text>")
    height = bottom + 12
    note = (
        f"<p class=note>{len(by_site) - len(sites)} smaller sites are not drawn.</p>"
        if len(by_site) > len(sites)
        else ""
    )
    return (
        f"<svg viewBox='0 0 {width} {height}' width={width} height={height} role=img "
        f"aria-label='Scores by site'>{''.join(marks)}</svg>"
        f"<p class=note>One point per case; the box spans the quartiles, and the bar is the median.</p>{note}"
    )


# -- cases --------------------------------------------------------------------------------------------------


def _cases(report: CohortReport) -> str:
    names = list(dict.fromkeys(name for record in report.records for name in record.scores))
    has = {
        key: any(record.summary.get(key) for record in report.records) for key in ("label", "site", "patient")
    }
    columns = [key for key in ("patient", "label", "site") if has[key]]
    header = ["case", "status", *columns, *map(text, names), "findings"]
    rows = []
    for record in report.records:
        page = record.summary.get("page")
        link = f"<a href='{_href(str(page))}'>{text(record.case)}</a>" if page else text(record.case)
        cells = [link, text(record.status), *(text(record.summary.get(key) or "") for key in columns)]
        cells += [number(record.scores.get(name)) for name in names]
        rows.append([*cells, number(record.summary.get("findings"))])
    first = 2 + len(columns)
    return table(header, rows, numeric=range(first, first + len(names) + 1))


def _href(page: str) -> str:
    from urllib.parse import quote

    return quote(page, errors="surrogateescape")


def _failures(report: CohortReport) -> str:
    rows = [
        [
            text(record.case),
            text(record.status),
            text(" ".join([*([record.error] if record.error else []), *record.notes])),
        ]
        for record in report.records
        if record.error or record.notes
    ]
    return (
        table(["case", "status", "what"], rows) if rows else "<p>Nothing failed, and nothing is missing.</p>"
    )


def _run_times(report: CohortReport) -> str:
    seconds = np.array([s for r in report.records if (s := r.summary.get("seconds")) is not None], np.float64)
    if not len(seconds):
        return "<p>The results do not state run times.</p>"
    rows = {
        "cases with a recorded time": f"{len(seconds):,}",
        "total": f"{seconds.sum():,.0f} s",
        "median per case": f"{np.median(seconds):,.1f} s",
        "fastest and slowest case": f"{seconds.min():,.1f} s and {seconds.max():,.1f} s",
    }
    return fields_table(rows)


def _provenance(report: CohortReport) -> Iterator[tuple[str, object]]:
    settings = report.settings
    yield from bundle_fields(settings.get("bundle") or {})
    for name, title in (("options", "options of the scan"), ("engine", "computed with")):
        values = settings.get(name) or {}
        yield title, words(values)
    yield "report written by", f"Lobule {__version__}"


def claim_answers(report: CohortReport) -> dict[int, str]:
    """Return what the results, the cohort and the bundle say about the items of CLAIM 2024."""
    settings, records = report.settings, report.records
    bundle = settings.get("bundle") or {}
    statuses = Counter(record.status for record in records)
    answers = {
        1: f"Deep learning method '{bundle.get('method')}' of Lobule" if bundle.get("method") else "",
        11: "The report names no patient unless requested. De-identification of the data: not known.",
        12: "Cases without a score are listed above and are left out of the evaluation.",
        22: f"Method {bundle.get('method')}, classes {', '.join(map(str, bundle.get('classes') or []))}, "
        f"bundle {bundle.get('fingerprint')}",
        23: f"Lobule {__version__}",
        31: "Maps, findings and the highest-scoring fields of each case",
        35: ", ".join(f"{count} {status}" for status, count in statuses.most_common()),
    }
    if settings.get("options"):
        answers[9] = f"Options of the scan: {words(settings['options'])}"
    answers |= _cohort_answers(report) | _bundle_answers(report.bundle or {})
    if report.evaluation is not None:
        answers[28] = "AUROC and AUPRC of cases; FROC of lesions where they are outlined"
        answers[29] = "95 % intervals from resampled patients"
        answers[37] = answers[38] = "See the section Evaluation"
    return {item: answer for item, answer in answers.items() if answer}


def _cohort_answers(report: CohortReport) -> dict[int, str]:
    if report.cohort is None:
        return {}
    cohort = report.cohort
    sites = Counter(case.site or "no site" for case in cohort)
    labels = Counter(case.label or "no label" for case in cohort)
    splits = Counter(case.split or "no split" for case in cohort)
    outlined = sum(1 for case in cohort if case.annotation)
    answers = {
        7: f"{len(cohort)} cases of {len(cohort.patients())} patients; sites: {_counted(sites)}",
        14: f"Labels of the cohort: {_counted(labels)}",
        19: f"Column split of the manifest: {_counted(splits)}",
        20: "Patients: a cohort with a patient in several splits is refused",
    }
    if outlined:
        answers[17] = f"{outlined} of {len(cohort)} cases have outlines"
    return answers


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common(8))


def _bundle_answers(model: Mapping[str, Any]) -> dict[int, str]:
    if not model:
        return {}
    provenance = model.get("provenance") or {}
    shown = ", ".join(f"{k} {v}" for k, v in provenance.items() if isinstance(v, str | int | float))
    metrics = ", ".join(
        f"{k} {v}" for k, v in (model.get("metrics") or {}).items() if isinstance(v, int | float)
    )
    return {
        25: f"Settings of the training: {words(model.get('config') or {})}"[:1500],
        26: f"Metrics of the validation: {metrics}" if metrics else "",
        24: shown[:600],
    }
